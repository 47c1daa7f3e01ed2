"""A terminal as a picture: what a program writes to a pseudo terminal, as SVG."""

import fcntl, html, os, pty, re, select, struct, termios, time

# The 16 colours that programs name, as a dark terminal shows them.
COLOURS = ["#1c1f26", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#c8ccd4",
           "#6b7280", "#ef7d86", "#a9d48a", "#f0cf8e", "#75bdf8", "#d68ce8", "#69c7d2", "#ffffff"]
PLAIN = (None, None, False, False)  # foreground, background, bold, underlined
CELL, LINE, SIZE, MARGIN = 8.4, 18, 14, 12


class Terminal:
    """The cells of a screen: as much of a terminal as these programs make use of."""

    def __init__(self, columns, rows):
        self.columns, self.rows = columns, rows
        self.clear()
        self.row = self.column = 0
        self.style = PLAIN

    def clear(self):
        self.cells = [[(" ", PLAIN)] * self.columns for _ in range(self.rows)]

    def write(self, text):
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b.|[^\x1b]", text):
            if part.startswith("\x1b["):
                self.obey(part[2:-1], part[-1])
            elif part == "\r":
                self.column = 0
            elif part == "\n":
                self.row += 1
            elif not part.startswith("\x1b") and self.row < self.rows and self.column < self.columns:
                self.cells[self.row][self.column] = (part, self.style)
                self.column += 1

    def obey(self, parameters, letter):
        numbers = [int(number or 0) for number in parameters.lstrip("?").split(";")]
        if letter == "H":
            self.row, self.column = (numbers + [1])[0] - 1, (numbers + [1, 1])[1] - 1
        elif letter == "J" and not parameters.startswith("?"):
            self.clear()
        elif letter == "m":
            self.paint(numbers)

    def paint(self, numbers):
        front, back, bold, under = self.style
        while numbers:
            number = numbers.pop(0)
            if number == 0:
                front, back, bold, under = PLAIN
            elif number in (1, 22):
                bold = number == 1
            elif number in (4, 24):
                under = number == 4
            elif number in (38, 48) and numbers[:1] == [5]:
                colour = COLOURS[numbers[1] % 16]
                front, back = (colour, back) if number == 38 else (front, colour)
                del numbers[:2]
            elif number in (39, 49):
                front, back = (None, back) if number == 39 else (front, None)
            elif 30 <= number <= 37:
                front = COLOURS[number - 30]
            elif 40 <= number <= 47:
                back = COLOURS[number - 40]
        self.style = (front, back, bold, under)

    def svg(self, title):
        width, height = self.columns * CELL + 2 * MARGIN, self.rows * LINE + 2 * MARGIN
        out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
               f'width="{width:.0f}" height="{height:.0f}" role="img">',
               f"<title>{html.escape(title)}</title>",
               f'<rect width="100%" height="100%" rx="8" fill="{COLOURS[0]}"/>',
               f'<g font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="{SIZE}">']
        for number, row in enumerate(self.cells):
            out += self.line(row, MARGIN + number * LINE)
        return "\n".join([*out, "</g>", "</svg>", ""])

    @staticmethod
    def line(row, top):
        at = 0
        while at < len(row):
            style, end = row[at][1], at
            while end < len(row) and row[end][1] == style:
                end += 1
            text, (front, back, bold, under) = "".join(cell for cell, _ in row[at:end]), style
            left, width = MARGIN + at * CELL, (end - at) * CELL
            if back:
                yield f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{LINE}" fill="{back}"/>'
            weight = ' font-weight="bold"' if bold else ""
            # Word by word, each of a fixed length: no blank and no font can move a column.
            for word in re.finditer(r"\S+", text):
                yield (f'<text x="{left + word.start() * CELL:.1f}" y="{top + 14}" fill="{front or COLOURS[7]}"{weight} '
                       f'textLength="{len(word[0]) * CELL:.1f}" lengthAdjust="spacingAndGlyphs">'
                       f'{html.escape(word[0])}</text>')
            if under:
                yield f'<rect x="{left:.1f}" y="{top + LINE - 2}" width="{width:.1f}" height="1" fill="{COLOURS[8]}"/>'
            at = end


def run(command, columns, rows, seconds, keys=b""):
    """What a program has on a terminal of this size after some seconds and these keys."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execvp(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    screen, end, written = Terminal(columns, rows), time.monotonic() + seconds, b""
    while (left := end - time.monotonic()) > 0:
        if not select.select([terminal], [], [], left)[0]:
            break
        try:
            more = os.read(terminal, 65536)
        except OSError:  # it has ended
            break
        written += more
        if keys and time.monotonic() > end - seconds / 2:
            os.write(terminal, keys)
            keys = b""
    screen.write(written.decode(errors="replace"))
    os.close(terminal)  # by which it ends
    os.waitpid(pid, 0)
    return screen
