"""How much longer does ``import ventu_lite`` take than what it stands on?

Measures the CPU time of imports in fresh interpreters, in turns: ``import flask, pydantic`` and
``import ventu_lite``. Goal: at most 1.3 times as long. pydantic imports most of itself only when it
is used, so for comparison also with ``BaseModel``, which each user's file needs, and what such a
file comes to with ``service.app``. Run it with ``python tests/benchmarks/import_time.py``.
"""

from measuring import medians, python, ratio, verdict

GOAL = 1.3
ROUNDS = 21
STATEMENTS = {
    "flask, pydantic": "import flask, pydantic",
    "ventu_lite": "import ventu_lite",
    "flask, BaseModel": "import flask; from pydantic import BaseModel",
    "an app": (
        "from ventu_lite import Service;"
        "s = Service('x', request=int, response=int); s.infer(lambda x: x); s.app"
    ),
}
TIMER = "import time; t = time.process_time(); {}; print(time.process_time() - t)"


def main() -> None:
    """Measure and print."""
    programs = [TIMER.format(statement) for statement in STATEMENTS.values()]
    for program in programs:  # so that all is compiled and in the cache of the disk
        python("-c", program)
    rounds = [[float(python("-c", program)) for program in programs] for _ in range(ROUNDS)]
    for name, seconds in zip(STATEMENTS, medians(rounds), strict=True):
        print(f"{name:16} {seconds * 1e3:6.1f} ms of CPU")
    print(f"ventu_lite to flask, BaseModel: {ratio(rounds, 1, 2):.2f} ×")
    print(verdict("ventu_lite to flask, pydantic", ratio(rounds, 1, 0), GOAL, " ×"))


if __name__ == "__main__":
    main()
