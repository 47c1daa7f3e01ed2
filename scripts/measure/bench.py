"""What scripts/bench does after the build; see there."""

import argparse, sys, time

import beside, control, documents, parts, services, topics, tuning, where

# In this order; each is a function of a `Part` and the arguments.
PARTS = {
    "compare": parts.compare, "calls": parts.calls, "peers": parts.peers, "memory": parts.memory,
    "where": where.where, "services": services.services, "flood": beside.flood, "generator": beside.generator, "control": control.control,
    "topics": topics.topics,
    "workers": tuning.workers, "accept": tuning.accept, "threads": tuning.threads,
    "bodies": tuning.bodies,
}
GROUPS = {"tuning": ["workers", "accept", "threads", "bodies"]}


def arguments():
    names = ", ".join([*PARTS, *GROUPS])
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures, and writes the tables of docs.")
    parser.add_argument("--only", metavar="PART,…", default=",".join(PARTS), help=f"of {names}")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.6, help="of each run")
    parser.add_argument("--print", action="store_true", help="leave the documents as they are")
    parser.add_argument("--write", action="store_true", help="measure nothing: write what was measured last")
    given = parser.parse_args()
    chosen = [name for word in given.only.split(",") for name in GROUPS.get(word, [word])]
    for name in chosen:
        if name not in PARTS:
            parser.error(f"there is no part {name}; there are {names}")
    given.parts = [name for name in PARTS if name in chosen]
    return given


def main():
    given = arguments()
    for name in [] if given.write else given.parts:
        from_ = time.monotonic()
        part = documents.Part(name, given)
        PARTS[name](part, given)
        for tables in part.tables.values():
            for block, lines in tables.items():
                print(f"\n{block}\n" + "\n".join(lines), flush=True)
        print(f"{name}: {time.monotonic() - from_:.0f} s", file=sys.stderr)
        if not given.print:
            documents.keep(part)
    if not given.print:
        # Kept results of a part that no longer exists have no block in any document.
        documents.write({name: part for name, part in documents.read().items() if name in PARTS})


main()
