"""Results as JSON lines in a file, and as tables on stdout."""

import json
import threading
import time

START = time.monotonic()


def progress(text):
    print(f"[{time.monotonic() - START:6.1f} s] {text}", flush=True)


def cell(value):
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else str(value)


def short(value, most=60):
    """A cell of a table; the file has the whole text."""
    text = cell(value)
    return text if len(text) <= most else text[:most - 3] + "..."


def table(rows):
    """Rows of equal keys as lines of aligned columns; numbers stand to the right."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [keys] + [[short(row.get(key)) for key in keys] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(keys))]
    left = [all(isinstance(row.get(key), (str, type(None))) for row in rows) for key in keys]
    return "\n".join("  " + "  ".join(text.ljust(w) if l else text.rjust(w)
                                      for text, w, l in zip(line, widths, left)).rstrip()
                     for line in lines)


class Report:
    """Every result is written when it is known, so that a run that is cut short leaves the rest."""

    def __init__(self, path):
        self._file = open(path, "w", encoding="utf-8")
        self._lock = threading.Lock()
        self.records = []

    def add(self, section, what, show=None, **values):
        """One result; `show` names the values that its table has, in place of all."""
        record = {"section": section, "what": what, **values}
        with self._lock:
            self.records.append((record, show))
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def print_section(self, section):
        kinds = {}
        for record, show in self.records:
            if record["section"] == section:
                shown = show or [key for key in record if key not in ("section", "what")]
                kinds.setdefault(record["what"], []).append({key: record.get(key) for key in shown})
        for what, rows in kinds.items():
            print(f"\n{section}: {what}\n{table(rows)}", flush=True)
        print(flush=True)

    def failures(self):
        """Every record that says it is not right."""
        return [record for record, _ in self.records if record.get("ok") is False]
