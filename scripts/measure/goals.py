"""The goals of the project, in one table; each cell of the documents is marked by it."""

import operator, os

# What, where, the first goal, the one behind it. Throughput, p50, p99 and CPU are ratios
# to the limit server.
GOALS = [
    ("throughput", "c50", .85, .97), ("throughput", "c500", .90, .97), ("throughput", "c50p16", .85, .95),
    ("throughput", "c10p64", .65, .85), ("throughput", "c50k16", .82, 1.0),
    ("p50", "c1", 1.2, 1.05), ("p99", "c50", 1.25, 1.0), ("p99", "c500", 1.25, 1.0),
    ("CPU", "c50", 1.2, 1.05), ("CPU", "c500", 1.15, 1.05), ("CPU", "c50p16", 1.25, 1.1), ("CPU", "c1", 1.6, 1.2),
    ("switches", "c50", .30, .05), ("switches", "c50p16", .03, .005), ("switches", "c1", 3.1, 2),
    ("system calls", "c50", 2.5, 2.2), ("system calls", "c50p16", .17, .13),
    ("memory", "never used", 512, 256), ("memory", "after use", 512, 256),
    # Of one core; every core, less one twentieth for the client.
    ("computing", "two threads", 1.6, .95 * os.cpu_count()),
    ("flood", "memory", 1.0, 1.0), ("flood", "p99", 3, 1.2),
]

TOLD = {
    "throughput": "throughput", "p50": "p50", "p99": "p99", "CPU": "CPU a message",
    "switches": "context switches a message", "system calls": "system calls a message",
    "memory": "bytes of an idle connection", "computing": "handlers of 50 µs, to one thread",
    "flood": "10 that flood and never read",
}

# A point that is told in other words.
PLACES = {"memory": {}, "flood": {"memory": "memory, to what the configuration allows", "p99": "p99 of the others, to that without"}}

MORE_IS_BETTER = {"throughput", "computing"}


def cell(figure, point):
    return next((goals for what, where, *goals in GOALS if (what, where) == (figure, point)), None)


def meets(figure, value, goal):
    better = operator.ge if figure in MORE_IS_BETTER else operator.le
    return better(value, goal)


def mark(figure, point, value):
    """` ++` both goals are met, ` +` the first, ` -` none; nothing without a goal."""
    goals = cell(figure, point)
    if goals is None:
        return ""
    first, second = (meets(figure, value, goal) for goal in goals)
    return " ++" if second else " +" if first else " -"


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3f}".rstrip("0").rstrip(".")


def table(measured):
    """`measured` has a value for each `figure point` that was ever measured here."""
    lines = ["| what | first goal | second goal | measured | met |", "|---|---|---|---|---|"]
    for figure, point, first, second in GOALS:
        sign = "≥" if figure in MORE_IS_BETTER else "≤"
        where = PLACES.get(figure, {}).get(point, point)
        value = measured.get(f"{figure} {point}")
        told = "not measured" if value is None else f"{value:,.0f}" if figure == "memory" else f"{value:.3f}"
        met = "" if value is None else {"++": "both", "+": "the first", "-": "no"}[mark(figure, point, value).strip()]
        lines.append(f"| {TOLD[figure]}, {where} | {sign} {number(first)} | {sign} {number(second)} | {told} | {met} |")
    return lines
