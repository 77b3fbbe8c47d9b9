"""Exit 0 when a server in this container answers 200: ``python probe.py PORT PATH``.

For images without curl. It goes past the variables of proxies, which are not meant for it.
"""

import http.client
import sys

if len(sys.argv) != 3 or not sys.argv[1].isdecimal():
    sys.exit("usage: python probe.py PORT PATH, such as: python probe.py 8000 /readyz")
port, path = int(sys.argv[1]), sys.argv[2]
connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
try:
    connection.request("GET", path)
    status = connection.getresponse().status
except (OSError, http.client.HTTPException) as exc:
    sys.exit(f"{path} on port {port}: {exc}")
finally:
    connection.close()
if status != 200:
    sys.exit(f"{path} on port {port}: status {status}")
