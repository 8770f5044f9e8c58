#!/usr/bin/env python3
"""Makes a report of the figures of bench/kernels and bench/compare.

    bench/report.py [directory]

Reads kernels.json and compare.json (Google Benchmark; one of them may be missing) in the directory, build/bench by
default; writes report.md and, where matplotlib is installed, SVG plots beside them; prints a summary.
"""

import json
import math
import os
import sys

PLOT_HINT = ("no plots: matplotlib is not installed (Debian: apt-get install python3-matplotlib; elsewhere: "
             "python3 -m pip install matplotlib), then run bench/report.py again")
REFERENCE = "softmax_attention"  # what the other mixers are compared with


class Result:
    """One benchmark: its name taken apart, and its figures.

    core/softmax_attention/head_dim:128/length:512/threads:1 is of kind "core" and subject
    "softmax_attention/head_dim:128", and has length 512 and threads 1. Whole mixers all have the same channels, which
    are not in their subject.
    """

    def __init__(self, row):
        self.name = row["name"]
        self.figures = row
        self.error = row.get("error_message") if row.get("error_occurred") else None
        parts = self.name.split("/")
        self.kind = parts[0]
        subject, self.sizes = [], {"threads": 1}
        for part in parts[1:]:
            key, colon, value = part.partition(":")
            is_size = colon and key in ("length", "context", "channels", "threads") and value.isdigit()
            if is_size:
                self.sizes[key] = int(value)
            if not is_size or key == "channels" and self.kind not in ("forward", "prefill", "step"):
                subject.append(part)
        self.subject = "/".join(subject)

    @property
    def length(self):
        return self.sizes.get("length", self.sizes.get("context"))

    @property
    def threads(self):
        return self.sizes["threads"]

    @property
    def seconds(self):
        unit = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}[self.figures["time_unit"]]
        return self.figures["real_time"] * unit

    def get(self, counter):
        return self.figures.get(counter)


class Results:
    """All benchmarks of both programs, in the order in which they ran."""

    def __init__(self, directory):
        self.context, self.all, self.files = {}, [], []
        for program in ("kernels", "compare"):
            path = os.path.join(directory, program + ".json")
            if not os.path.exists(path):
                continue
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            self.files.append(path)
            self.context = {**content["context"], **self.context}
            # Aggregates of --benchmark_repetitions repeat what the single runs say.
            self.all += [Result(row) for row in content["benchmarks"] if row.get("run_type") != "aggregate"]
        self.good = [result for result in self.all if result.error is None]
        self.failed = [result for result in self.all if result.error is not None]

    def of(self, *kinds):
        return [result for result in self.good if result.kind in kinds]

    def curves(self, kind, threads, counter="ns_per_token"):
        """{subject: {length: value}} of the whole mixers."""
        curves, constant = {}, set()
        for result in self.of(kind):
            if result.threads == threads and result.get(counter) is not None:
                curves.setdefault(result.subject, {})[result.length] = result.get(counter)
                if result.get("constant_state"):
                    constant.add(result.subject)
        # A step from a constant state is measured at one context, and costs the same at all.
        lengths = {length for curve in curves.values() for length in curve}
        for subject in constant:
            value = curves[subject][max(curves[subject])]
            curves[subject] = {length: curves[subject].get(length, value) for length in lengths}
        return curves

    def disturbed(self):
        """Benchmarks on one thread that had the processor for less than nine tenths of their time."""
        return [r for r in self.good if r.threads == 1 and (r.get("processor_share") or 1) < 0.9]


# --- numbers as text ------------------------------------------------------------------------------------------------


def three_digits(value):
    """1234.5 -> 1230, 12.345 -> 12.3, 0.012345 -> 0.0123."""
    if value is None:
        return ""
    if value == 0 or not math.isfinite(value):
        return str(value)
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):.{max(0, digits)}f}"


def scaled(value, factor):
    return three_digits(None if value is None else value * factor)


def share(value):
    return "" if value is None else f"{value:.2f}"


def size(count):
    """Bytes."""
    if count is None:
        return ""
    for unit, factor in (("MB", 1e6), ("KB", 1e3)):
        if count >= factor:
            return f"{three_digits(count / factor)} {unit}"
    return f"{count:.0f} B"


def table(header, rows, left=1):
    """Markdown, columns aligned; the first `left` are text."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [header] + rows) for i in range(len(header))]

    def line(cells):
        padded = [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths))]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule] + [line(row) for row in rows])


# --- what the figures say -------------------------------------------------------------------------------------------


def at(curve, length):
    """The value of {length: value} at `length`, on straight lines in logarithms; None outside."""
    if length in curve:
        return curve[length]
    below = [known for known in curve if known < length]
    above = [known for known in curve if known > length]
    if not below or not above:
        return None
    a, b = max(below), min(above)
    weight = math.log(length / a) / math.log(b / a)
    return math.exp((1 - weight) * math.log(curve[a]) + weight * math.log(curve[b]))


def crossing(curve, reference):
    """Where `curve` comes below `reference` for good: (length or None, what to print)."""
    points = [(length, at(curve, length), at(reference, length)) for length in sorted({*curve, *reference})]
    points = [(length, math.log(mine / other)) for length, mine, other in points if mine and other]
    if not points:
        return None, ""
    if all(ratio <= 0 for _, ratio in points):
        return points[0][0], f"below {points[0][0]}"
    if points[-1][1] > 0:
        return None, f"above {points[-1][0]}"
    last_slower = max(i for i, (_, ratio) in enumerate(points) if ratio > 0)
    (a, slower), (b, faster) = points[last_slower], points[last_slower + 1]
    length = math.exp(math.log(a) + math.log(b / a) * slower / (slower - faster))
    return length, f"{three_digits(length)}"


def pair_rows(results):
    """[(result on one thread, the same on two or None)], in order."""
    by_key, order = {}, []
    for result in results:
        key = (result.kind, result.subject, result.length)
        if key not in by_key:
            by_key[key] = {}
            order.append(key)
        by_key[key][result.threads] = result
    return [(by_key[key].get(1), by_key[key].get(2)) for key in order if 1 in by_key[key]]


def speedup(one, two):
    return f"{one.seconds / two.seconds:.2f}" if two else ""


# --- sections -------------------------------------------------------------------------------------------------------


def machine(results):
    context = results.context
    caches = ", ".join(f"L{c['level']} {size(c['size'])}" for c in context.get("caches", []) if c["type"] != "Instruction")
    return table(["", "value"], [
        ["processor", f"{context.get('processor', 'unknown')}, {context.get('num_cpus', '?')} cores"],
        ["caches", caches],
        ["instruction set", context.get("instruction_set", "")],
        ["compiler", context.get("compiler", "")],
        ["threads by", context.get("threads_by", "")],
        ["effort", context.get("effort", "")],
        ["date", context.get("date", "")],
        ["load when started", ", ".join(f"{load:.2f}" for load in context.get("load_avg", []))],
    ], left=2)


def probes(results):
    rows = []
    for one, two in pair_rows(results.of("probe")):
        counter, unit = next(((c, u) for c, u in (("flop_per_second", "GFLOP/s"), ("exp_per_second", "G/s"),
                                                  ("bytes_per_second", "GB/s")) if one.get(c)), (None, ""))
        if counter:
            rows.append([one.subject, unit, scaled(one.get(counter), 1e-9), scaled(two.get(counter), 1e-9) if two else ""])
    return table(["probe", "unit", "1 thread", "2 threads"], rows, left=2) if rows else ""


def cores(results, *kinds):
    rows = []
    header = ["benchmark", "length", "us", "us per token", "GFLOP/s", "of FMA peak", "roofline", "roofline, 2 threads",
              "2 threads faster by", "processor share"]
    if results.disturbed():
        header.append("roofline by processor time")
    for one, two in pair_rows(results.of(*kinds)):
        rows.append([one.subject, one.length or "", scaled(one.seconds, 1e6), scaled(one.get("ns_per_token"), 1e-3),
                     scaled(one.get("flop_per_second"), 1e-9), share(one.get("fma_peak_share")), share(one.get("roofline")),
                     share(two.get("roofline")) if two else "", speedup(one, two), share(one.get("processor_share"))])
        if results.disturbed():
            rows[-1].append(share(one.get("roofline_by_processor_time")))
    return table(header, rows) if rows else ""


def core_steps(results):
    rows = []
    for one, two in pair_rows(results.of("core_step")):
        rows.append([one.subject, one.length or "", scaled(one.seconds, 1e6), size(one.get("state_bytes")),
                     scaled(one.get("kv_bytes_per_second"), 1e-9), share(one.get("kv_l3_share")), share(one.get("roofline")),
                     speedup(one, two), share(one.get("processor_share"))])
    return table(["benchmark", "context", "us per token", "state", "GB/s of keys and values", "of L3 bandwidth", "roofline",
                  "2 threads faster by", "processor share"], rows) if rows else ""


def by_length(results, kind, threads, counter, text):
    """A row for each mixer, a column for each length."""
    curves = results.curves(kind, threads, counter)
    lengths = sorted({length for curve in curves.values() for length in curve})
    rows = [[subject] + [text(curve.get(length)) for length in lengths] for subject, curve in sorted(curves.items())]
    return table(["mixer"] + [str(length) for length in lengths], rows) if rows else ""


def crossings(results):
    rows = []
    for subject in sorted(results.curves("forward", 1)):
        if subject == REFERENCE:
            continue
        row = [subject]
        for kind in ("forward", "step"):
            for threads in (1, 2):
                curves = results.curves(kind, threads)
                known = subject in curves and REFERENCE in curves
                row.append(crossing(curves[subject], curves[REFERENCE])[1] if known else "")
        rows.append(row)
    return table(["mixer", "forward", "forward, 2 threads", "step", "step, 2 threads"], rows) if rows else ""


def streaming(results):
    """Steps of convolutions: what a schedule is chosen by."""
    rows = [[r.subject, r.length]
            + [scaled(r.get(f"step_{which}_ns"), 1e-3) for which in ("mean", "median", "longest")]
            + [three_digits(r.get("step_longest_to_median"))]
            for r in results.of("kernel") if r.get("step_longest_ns")]
    return table(["benchmark", "length", "mean", "median", "longest", "longest to median"], rows) if rows else ""


def times_as_fast(results, subject):
    """How many times as fast as exact attention a mixer is. Where that was not measured its time is a L + b L^2."""
    curve, reference = (results.curves("forward", 1).get(name, {}) for name in (subject, REFERENCE))
    if not curve or len(reference) < 2:
        return ""
    shorter, longest = sorted(reference)[-2:]
    slope = (reference[longest] - reference[shorter]) / (longest - shorter)
    row = []
    for length in sorted(curve):
        known = at(reference, length)
        other = reference[longest] + slope * (length - longest) if known is None and length > longest else known
        row.append("" if other is None else three_digits(other / curve[length]) + ("" if length in reference else "*"))
    note = ("\n\n\\* by the time of attention that its lengths "
            f"{shorter} and {longest} suggest" if any(cell.endswith("*") for cell in row) else "")
    return table(["mixer"] + [str(length) for length in sorted(curve)], [[subject] + row]) + note


def speedups(results):
    """Time on one thread over time on two, forward."""
    one, two = results.curves("forward", 1), results.curves("forward", 2)
    lengths = sorted({length for curve in two.values() for length in curve})
    rows = [[subject] + [share(one[subject][n] / two[subject][n]) if n in one[subject] and n in two.get(subject, {}) else ""
                         for n in lengths] for subject in sorted(one)]
    return table(["mixer"] + [str(length) for length in lengths], rows) if lengths and rows else ""


# --- plots ----------------------------------------------------------------------------------------------------------


def plots(results, directory):
    """Writes the SVG files; returns [(file name, caption)], or None without matplotlib."""
    try:
        import matplotlib
        matplotlib.use("svg")
        import matplotlib.pyplot as plt
        from matplotlib.ticker import FuncFormatter, LogLocator
    except ImportError:
        return None
    plt.rcParams.update({"svg.hashsalt": "seqmix", "font.size": 10, "axes.grid": True, "grid.alpha": 0.3,
                         "axes.spines.top": False, "axes.spines.right": False})
    subjects = sorted({r.subject for r in results.of("forward", "step")})
    palette = plt.get_cmap("tab10").colors
    markers, dashes = "osD^vP*X", ("-", "--", ":", "-.")

    def style(subject):
        if subject == REFERENCE:
            return {"color": "black", "marker": "o", "linewidth": 2.2, "zorder": 3}
        number = [s for s in subjects if s != REFERENCE].index(subject)
        return {"color": palette[number % 10], "marker": markers[(number + 1) % len(markers)],
                "linestyle": dashes[number // 10 % len(dashes)], "linewidth": 1.6}

    def save(figure, name):
        figure.savefig(os.path.join(directory, name), metadata={"Date": None}, bbox_inches="tight")
        plt.close(figure)

    def lengths_axis(axes, lengths, label):
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{n // 1024}K" if n % 1024 == 0 else str(n) for n in lengths])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(label)

    def lines(name, title, ylabel, xlabel, kind, counter, factor):
        panels = [(threads, results.curves(kind, threads, counter)) for threads in (1, 2)]
        panels = [(threads, curves) for threads, curves in panels if curves]
        if counter == "state_bytes":
            panels = panels[:1]
        if not panels:
            return []
        figure, all_axes = plt.subplots(1, len(panels), figsize=(1.5 + 5.2 * len(panels), 4.4), sharey=True, squeeze=False)
        for axes, (threads, curves) in zip(all_axes[0], panels):
            for subject in sorted(curves):
                points = sorted((length, value) for length, value in curves[subject].items() if value > 0)
                axes.plot([p[0] for p in points], [p[1] * factor for p in points], label=subject, markersize=5, **style(subject))
            lengths_axis(axes, sorted({length for curve in curves.values() for length in curve}), xlabel)
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: size(v) if counter == "state_bytes" else f"{v:g}"))
            axes.set_yticks([], minor=True)
            if counter != "state_bytes":
                axes.set_title(f"{threads} thread" + "s" * (threads > 1), fontsize=10)
        all_axes[0][0].set_ylabel(ylabel)
        all_axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        figure.suptitle(title, x=0.5 * (all_axes[0][0].get_position().x0 + all_axes[0][-1].get_position().x1))
        save(figure, name)
        return [(name, title)]

    def crossing_bars(name, title):
        bars = []
        for kind in ("forward", "step"):
            curves = results.curves(kind, 1)
            if REFERENCE in curves:
                bars += [(kind, subject, crossing(curve, curves[REFERENCE]), max(curves[REFERENCE]), min(curve))
                         for subject, curve in sorted(curves.items()) if subject != REFERENCE]
        if not bars:
            return []
        names = sorted({subject for _, subject, _, _, _ in bars}, reverse=True)
        figure, axes = plt.subplots(figsize=(7.5, 1.4 + 0.5 * len(names)))
        for kind, shift, colour in (("forward", 0.19, palette[0]), ("step", -0.19, palette[1])):
            first = True
            for _, subject, (length, text), longest, shortest in (bar for bar in bars if bar[0] == kind):
                place = names.index(subject) + shift
                end = length if length else longest
                start = shortest / 2
                axes.barh(place, end - start, 0.34, left=start, color=colour, alpha=1 if length else 0.35,
                          label=kind if first else None)
                axes.text(end * 1.06, place, text, va="center", fontsize=9)
                first = False
        axes.set_yticks(range(len(names)), names)
        lengths_axis(axes, sorted({n for curve in results.curves("forward", 1).values() for n in curve}),
                     "length or context (tokens)")
        axes.grid(axis="y", visible=False)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
        axes.set_title(title)
        save(figure, name)
        return [(name, title)]

    made = lines("time_per_token.svg", "Whole sequence: time per token", "microseconds per token", "length (tokens)", "forward",
                 "ns_per_token", 1e-3)
    made += lines("step_time.svg", "Decoding: time of one step", "microseconds", "context (tokens)", "step", "ns_per_token", 1e-3)
    made += lines("state_bytes.svg", "Decoding: size of the state", "size", "context (tokens)", "step", "state_bytes", 1)
    made += crossing_bars("crossing.svg", "Length from which a mixer is faster than exact attention, 1 thread")
    return made


# --- the report -----------------------------------------------------------------------------------------------------


def warnings(results):
    lines = [f"FAILED: {result.name}: {result.error}" for result in results.failed]
    disturbed = results.disturbed()
    if disturbed:
        lines.append(f"The machine was busy: {len(disturbed)} of {sum(r.threads == 1 for r in results.good)} benchmarks on one "
                     "thread had to share their processor. Figures may be too low.")
    if results.context.get("effort") == "short":
        lines.append("This was a short run: its figures mean nothing.")
    return lines


def report(results, pictures):
    """The Markdown text."""
    text = ["# Benchmarks", ""]
    text += [line + "\n" for line in warnings(results)]
    text += ["Times are the shortest of all runs. `roofline` is the least time that the operator's minimum work could take at "
             "the probed peaks, divided by the time taken; `processor share` how much of the time measured the program had "
             "a processor on one thread.", "", machine(results), ""]

    def section(title, *blocks):
        blocks = [block for block in blocks if block]
        if blocks:
            text.extend([f"## {title}", ""])
            for block in blocks:
                text.extend([block, ""])

    def picture(name):
        return next((f"![{caption}]({file})" for file, caption in pictures or [] if file == name), "")

    def titled(title, block):
        return f"{title}\n\n{block}" if block else ""

    section("What the machine can do", probes(results))
    section("Core functions", cores(results, "core"), titled("One token:", core_steps(results)))
    section("Engines", cores(results, "kernel"), titled("Steps of streamed convolutions, microseconds:", streaming(results)))
    section("Mixers: whole sequences, by length", picture("time_per_token.svg"),
            *(titled(f"Microseconds per token, {threads} thread{'s' * (threads > 1)}:",
                     by_length(results, "forward", threads, "ns_per_token", lambda v: scaled(v, 1e-3))) for threads in (1, 2)),
            titled("Two threads are faster by:", speedups(results)),
            titled("Prefill into a state, microseconds per token, 1 thread:",
                   by_length(results, "prefill", 1, "ns_per_token", lambda v: scaled(v, 1e-3))))
    section("Mixers: one token at a time, by context", picture("step_time.svg"),
            *(titled(f"Microseconds per step, {threads} thread{'s' * (threads > 1)} (a constant state is measured once):",
                     by_length(results, "step", threads, "ns_per_token", lambda v: scaled(v, 1e-3))) for threads in (1, 2)),
            picture("state_bytes.svg"), titled("Size of the state:", by_length(results, "step", 1, "state_bytes", size)))
    section("Length from which a mixer is faster than exact attention", picture("crossing.svg"), crossings(results),
            titled("Times as fast as exact attention, forward, 1 thread, by length (filters of 8192 taps):",
                   times_as_fast(results, "hyena")))
    return "\n".join(text)


def summary(results):
    """What goes to the terminal."""
    context = results.context
    text = [f"{context.get('processor', 'unknown')}, {context.get('instruction_set', '')}, {context.get('compiler', '')}", ""]

    def add(title, block):
        if block:
            text.extend([title, block, ""])

    add("The machine", probes(results))
    add("Core functions", cores(results, "core"))
    add("Core functions, one token", core_steps(results))
    add("Mixers, whole sequence, microseconds per token by length, 1 thread",
        by_length(results, "forward", 1, "ns_per_token", lambda v: scaled(v, 1e-3)))
    add("Two threads are faster by", speedups(results))
    add("Mixers, one step, microseconds by context, 1 thread",
        by_length(results, "step", 1, "ns_per_token", lambda v: scaled(v, 1e-3)))
    add("Steps of streamed convolutions, microseconds", streaming(results))
    add("Length from which a mixer is faster than exact attention", crossings(results))
    add("Hyena, filters of 8192 taps: times as fast as exact attention, forward, 1 thread, by length",
        times_as_fast(results, "hyena"))
    return "\n".join(text + warnings(results))


def main():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    directory = sys.argv[1] if len(sys.argv) > 1 else os.path.join(root, "build", "bench")
    results = Results(directory)
    if not results.all:
        sys.exit(f"{directory}: no kernels.json and no compare.json; run bench/run first")
    pictures = plots(results, directory)
    path = os.path.join(directory, "report.md")
    with open(path, "w", encoding="utf-8") as file:
        file.write(report(results, pictures))
    print(summary(results))
    print(f"report: {path}")
    if pictures is None:
        print(PLOT_HINT)
    else:
        print("plots:  " + ", ".join(os.path.join(directory, name) for name, _ in pictures))
    if results.failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
