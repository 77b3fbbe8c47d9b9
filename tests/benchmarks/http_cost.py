"""What the HTTP layer costs by itself: an empty handler under wrk. Run me; wrk must be installed."""

import argparse, asyncio
