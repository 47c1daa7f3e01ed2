"""What is measured is kept, part by part, and written into the blocks of the documents."""

import json, os, re, statistics, time

import goals
from servers import ROOT, Failed

KEPT = ROOT / "target/bench.json"


def median(values):
    return statistics.median(values)


def spread(values, digits=2):
    """Median, and the middle half of the repetitions."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median(values):.{digits}f} [{low:.{digits}f}-{high:.{digits}f}]"


def table(head, rows):
    lines = [" | ".join(head), "|".join("---" for _ in head)]
    return [f"| {lines[0]} |", f"|{lines[1]}|"] + ["| " + " | ".join(row) + " |" for row in rows]


# How often and how long the parts run that do not go by the arguments alone.
OWN_REPETITIONS = {
    "calls": lambda given: f"one run of {given.seconds} s at each point",
    "where": lambda given: f"one run of 4 s at each point, {given.repetitions} of {given.seconds} s with handlers that compute",
    "memory": lambda given: "one run of 3 s in use and one of 1 s before and after it",
    "control": lambda given: "as often as the table says",
    "flood": lambda given: f"{given.repetitions} repetitions of {max(given.seconds, 1.0)} s",
    "topics": lambda given: f"{given.repetitions} repetitions of {max(given.seconds, 1.0)} s",
}


class Part:
    """What one part has measured: tables by document and block, and values of goals."""

    def __init__(self, name, arguments):
        self.name, self.tables, self.goals = name, {}, {}
        alike = lambda given: f"{given.repetitions} repetitions of {given.seconds} s"
        self.conditions = {
            "machine": f"{os.cpu_count()} CPUs, Linux {os.uname().release}",
            "repetitions": OWN_REPETITIONS.get(name, alike)(arguments),
            "date": time.strftime("%Y-%m-%d"), "load": f"{os.getloadavg()[0]:.1f}",
        }

    def add(self, document, block, lines):
        self.tables.setdefault(document, {})[block] = lines

    def goal(self, figure, point, value):
        """The mark of this cell; the value is kept for the table of goals."""
        self.goals[f"{figure} {point}"] = value
        return goals.mark(figure, point, value)


def keep(part):
    kept = read()
    # Last, so that the newest is told last.
    kept.pop(part.name, None)
    kept[part.name] = {"tables": part.tables, "goals": part.goals, "conditions": part.conditions}
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps(kept, indent=1, ensure_ascii=False))


def read():
    return json.loads(KEPT.read_text()) if KEPT.exists() else {}


def machine(kept, document):
    """On what, how often and when: one line for the parts that were measured alike."""
    alike = {}
    for name, part in kept.items():
        if document in part["tables"]:
            conditions = part["conditions"]
            key = tuple(conditions[what] for what in ("machine", "repetitions", "date"))
            alike.setdefault(key, []).append((name, conditions["load"]))
    lines = []
    for (machine, repetitions, date), parts in alike.items():
        told = ", ".join(f"{name} {load}" for name, load in parts)
        lines.append(f"- {machine}; {repetitions}, {date}. Load average at the start of each part: {told}.")
    return lines


def write(kept):
    """Each block of each document that something was measured for."""
    documents = {}
    for part in kept.values():
        for document, tables in part["tables"].items():
            documents.setdefault(document, {}).update(tables)
    for document, tables in documents.items():
        path = ROOT / "docs" / document
        text = path.read_text()
        if document == "PERFORMANCE.md":
            tables["goals"] = goals.table({key: value for part in kept.values() for key, value in part["goals"].items()})
        tables["machine"] = machine(kept, document)
        for name, lines in tables.items():
            block = f"<!-- {name} -->\n" + "\n".join(lines) + "\n<!-- end -->"
            text, count = re.subn(rf"<!-- {name} -->\n.*?<!-- end -->", lambda _: block, text, flags=re.S)
            if count != 1:
                raise Failed(f"docs/{document} has {count} blocks {name}")
        path.write_text(text)
