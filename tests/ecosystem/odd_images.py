"""Some hundred odd image files, the same ones in every run: what cameras, editors and broken downloads leave in data sets."""

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image

ZIGZAG = sorted(range(64), key=lambda i: (i // 8 + i % 8, (i // 8 if (i // 8 + i % 8) % 2 else i % 8)))
# (colour type, samples per pixel, depths)
PNG_KINDS = [(0, 1, (1, 2, 4, 8, 16)), (2, 3, (8, 16)), (3, 1, (1, 2, 4, 8)), (4, 2, (8, 16)), (6, 4, (8, 16))]
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def picture(width=37, height=29):
    """Something smooth with an edge, as photographs are."""
    y, x = np.mgrid[0:height, 0:width]
    red = 255 * x / width
    green = 127 + 100 * np.sin(y / 4)
    blue = np.where(x + y > 30, 220, 30)
    return Image.fromarray(np.stack([red, green, blue], -1).clip(0, 255).astype(np.uint8), "RGB")


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


# --- PNG


def chunk(name, content=b"", checksum=None):
    found = zlib.crc32(name + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", found)


def scan_lines(samples, depth, filter_of):
    """The rows of a PNG, packed and filtered; `samples` is [height, width, channels]."""
    rows, pixel = [], max(1, samples.shape[2] * depth // 8)
    before = None
    for number, row in enumerate(samples):
        flat = row.reshape(-1)
        if depth == 16:
            data = flat.astype(">u2").tobytes()
        elif depth == 8:
            data = flat.astype(np.uint8).tobytes()
        else:
            bits = ((flat[:, None] >> np.arange(depth - 1, -1, -1)) & 1).astype(np.uint8)
            data = np.packbits(bits.reshape(-1)).tobytes()
        kind = filter_of(number)
        line = np.frombuffer(data, np.uint8).astype(int)
        up = np.zeros_like(line) if before is None else before
        left = np.concatenate([np.zeros(pixel, int), line])[: len(line)]
        corner = np.concatenate([np.zeros(pixel, int), up])[: len(line)]
        estimate = left + up - corner
        distances = np.stack([abs(estimate - left), abs(estimate - up), abs(estimate - corner)])
        paeth = np.choose(distances.argmin(0), [left, up, corner])
        predicted = [0, left, up, (left + up) // 2, paeth][kind]
        rows.append(bytes([kind]) + ((line - predicted) % 256).astype(np.uint8).tobytes())
        before = line
    return b"".join(rows)


def png(colour, depth, samples, interlaced=False, before=b"", after=b"", filter_of=lambda row: row % 5, pieces=1, header=None, palette=None):
    height, width = samples.shape[:2]
    lines = b""
    if interlaced:
        for x, y, step_x, step_y in ADAM7:
            part = samples[y::step_y, x::step_x]
            if part.size:
                lines += scan_lines(part, depth, filter_of)
    else:
        lines = scan_lines(samples, depth, filter_of)
    packed = zlib.compress(lines)
    size = -(-len(packed) // pieces)
    data = b"".join(chunk(b"IDAT", packed[i : i + size]) for i in range(0, len(packed), size))
    fields = header or struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    colours = chunk(b"PLTE", palette) if palette else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", fields) + colours + before + data + after + chunk(b"IEND")


def samples_of(draw, width, height, channels, depth):
    return draw.integers(0, 1 << depth, (height, width, channels))


def pngs(draw):
    for colour, channels, depths in PNG_KINDS:
        for depth in depths:
            for interlaced in (False, True):
                samples = samples_of(draw, 13, 11, channels, depth)
                palette = draw.integers(0, 256, 3 << depth, np.uint8).tobytes() if colour == 3 else None
                name = f"png-{colour}-{depth}{'-interlaced' if interlaced else ''}"
                yield name, png(colour, depth, samples, interlaced, palette=palette)
                if colour == 0:
                    yield f"{name}-trns", png(colour, depth, samples, interlaced, before=chunk(b"tRNS", struct.pack(">H", int(samples[0, 0, 0]))))
                if colour == 2:
                    yield f"{name}-trns", png(colour, depth, samples, interlaced, before=chunk(b"tRNS", struct.pack(">HHH", *map(int, samples[0, 0]))))
                if colour == 3:
                    yield f"{name}-trns", png(colour, depth, samples, interlaced, palette=palette, before=chunk(b"tRNS", bytes([0, 128])))
    rgb = samples_of(draw, 13, 11, 3, 8)
    for width, height in ((1, 1), (1, 17), (17, 1), (2, 3), (3000, 1), (1, 3000)):
        for interlaced in (False, True):
            samples = samples_of(draw, width, height, 3, 8)
            yield f"png-{width}x{height}{'-interlaced' if interlaced else ''}", png(2, 8, samples, interlaced)
    for kind in range(5):
        yield f"png-filter-{kind}", png(2, 8, rgb, filter_of=lambda row, kind=kind: kind)
    yield "png-many-idat", png(2, 8, rgb, pieces=50)
    yield "png-empty-idat", png(2, 8, rgb, before=chunk(b"IDAT"))
    for name, gamma in (("linear", 100000), ("srgb", 45455), ("zero", 0)):
        yield f"png-gama-{name}", png(2, 8, rgb, before=chunk(b"gAMA", struct.pack(">I", gamma)))
    yield "png-srgb", png(2, 8, rgb, before=chunk(b"sRGB", b"\0"))
    yield "png-icc", png(2, 8, rgb, before=chunk(b"iCCP", b"p\0\0" + zlib.compress(b"not a profile")))
    yield "png-icc-broken", png(2, 8, rgb, before=chunk(b"iCCP", b"p\0\0garbage"))
    yield "png-chrm-phys-time", png(2, 8, rgb, before=chunk(b"pHYs", struct.pack(">IIB", 1, 2, 1)) + chunk(b"tIME", bytes(7)))
    yield "png-sbit", png(2, 8, rgb, before=chunk(b"sBIT", b"\5\6\5"))
    yield "png-bkgd", png(6, 8, samples_of(draw, 13, 11, 4, 8), before=chunk(b"bKGD", bytes(6)))
    yield "png-text", png(2, 8, rgb, before=chunk(b"tEXt", b"Comment\0x") + chunk(b"zTXt", b"k\0\0" + zlib.compress(b"v")))
    yield "png-text-latin", png(2, 8, rgb, before=chunk(b"tEXt", b"Comment\0\xe9\xff"))
    yield "png-text-after", png(2, 8, rgb, after=chunk(b"tEXt", b"Comment\0x"))
    yield "png-private-chunk", png(2, 8, rgb, before=chunk(b"prVt", b"x"))
    yield "png-critical-unknown", png(2, 8, rgb, before=chunk(b"PRVT", b"x"))
    yield "png-short-palette", png(3, 8, draw.integers(0, 9, (11, 13, 1)), palette=bytes(range(12)))
    yield "png-short-palette-4", png(3, 4, draw.integers(0, 16, (11, 13, 1)), palette=bytes(range(30, 39)))
    yield "png-no-palette", png(3, 8, draw.integers(0, 9, (11, 13, 1)))
    yield "png-palette-in-rgb", png(2, 8, rgb, palette=bytes(range(12)))
    yield "png-grey-trns-short", png(0, 8, rgb[:, :, :1], before=chunk(b"tRNS", b"\0"))
    yield "png-long-trns", png(3, 2, draw.integers(0, 4, (11, 13, 1)), palette=bytes(range(12)), before=chunk(b"tRNS", bytes(9)))

    whole = png(2, 8, rgb, before=chunk(b"tEXt", b"Comment\0x"), after=chunk(b"tEXt", b"After\0x"), pieces=3)
    yield "png-trailing", whole + b"garbage behind the end"
    yield "png-twice", whole + whole
    for at in sorted({*np.linspace(4, len(whole) - 1, 14).astype(int).tolist(), len(whole) - 12, len(whole) - 13, len(whole) - 30}):
        yield f"png-cut-{at}", whole[:at]
    wrong = {
        "header": png(2, 8, rgb).replace(zlib.crc32(b"IHDR" + struct.pack(">IIBBBBB", 13, 11, 8, 2, 0, 0, 0)).to_bytes(4, "big"), b"oops", 1),
        "text": png(2, 8, rgb, before=chunk(b"tEXt", b"Comment\0x", 1)),
        "text-after": png(2, 8, rgb, after=chunk(b"tEXt", b"Comment\0x", 1)),
        "end": whole[:-4] + b"oops",
    }
    data = png(2, 8, rgb)
    at = data.index(b"IDAT")
    length = struct.unpack(">I", data[at - 4 : at])[0]
    wrong["data"] = data[: at + 4 + length] + b"oops" + data[at + 8 + length :]
    for name, found in wrong.items():
        yield f"png-crc-{name}", found
    # The checksum of the compressed stream, behind chunk checksums that are right.
    stream = bytearray(data[at + 4 : at + 4 + length])
    stream[-1] ^= 1
    yield "png-adler", data[: at - 4] + chunk(b"IDAT", bytes(stream)) + chunk(b"IEND")
    lines = scan_lines(rgb, 8, lambda row: 0)
    for name, stream in (
        ("short", zlib.compress(lines[:-5])),
        ("long", zlib.compress(lines + bytes(40))),
        ("tail", zlib.compress(lines) + b"tail"),
        ("cut", zlib.compress(lines)[:-9]),
    ):
        yield f"png-stream-{name}", data[: at - 4] + chunk(b"IDAT", stream) + chunk(b"IEND")
    yield "png-filter-9", data[: at - 4] + chunk(b"IDAT", zlib.compress(b"\x09" + lines[1:])) + chunk(b"IEND")
    for name, fields in (
        ("zero-width", (0, 11, 8, 2, 0, 0, 0)), ("zero-height", (13, 0, 8, 2, 0, 0, 0)), ("depth-3", (13, 11, 3, 2, 0, 0, 0)),
        ("colour-5", (13, 11, 8, 5, 0, 0, 0)), ("compression-1", (13, 11, 8, 2, 1, 0, 0)), ("filter-method-1", (13, 11, 8, 2, 0, 1, 0)),
        ("interlace-2", (13, 11, 8, 2, 0, 0, 2)), ("bomb", (20000, 20000, 8, 2, 0, 0, 0)), ("bomb-huge", (1 << 31, 1 << 31, 8, 2, 0, 0, 0)),
        ("taller", (13, 12, 8, 2, 0, 0, 0)), ("shorter", (13, 10, 8, 2, 0, 0, 0)),
    ):  # fmt: skip
        yield f"png-{name}", png(2, 8, rgb, header=struct.pack(">IIBBBBB", *fields))
    yield "png-long-header", png(2, 8, rgb, header=struct.pack(">IIBBBBBB", 13, 11, 8, 2, 0, 0, 0, 0))
    yield "png-no-header", b"\x89PNG\r\n\x1a\n" + data[33:]
    yield "png-two-headers", data[:33] + data[8:]
    yield "png-no-data", data[:33] + chunk(b"IEND")
    yield "png-cgbi", data[:8] + chunk(b"CgBI", b"\x50\0\x20\x06") + data[8:]
    frames = [picture(), picture().rotate(180), picture().rotate(90)]
    yield "apng", saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    yield "apng-default-image", saved(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    for at in range(12):
        damaged = bytearray(whole)
        damaged[random.Random(at).randrange(8, len(whole))] ^= 1 << at % 8
        yield f"png-flipped-{at}", bytes(damaged)


# --- EXIF and XMP


def exif(orientation, order="<", kind=3, count=1, first=b"", magic=42, offset=8):
    """A TIFF block whose directory has the orientation."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", magic, offset)
    value = struct.pack({1: "B3x", 3: f"{order}H2x", 4: f"{order}I", 5: f"{order}I"}.get(kind, f"{order}H2x"), orientation)
    entries = [entry for entry in (first, struct.pack(f"{order}HHI", 0x0112, kind, count) + value) if entry]
    return head + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + struct.pack(f"{order}I", 0) + bytes(16)


def xmp(orientation, as_element=False):
    field = f"<tiff:Orientation>{orientation}</tiff:Orientation>" if as_element else ""
    attribute = "" if as_element else f' tiff:Orientation="{orientation}"'
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"{attribute}>{field}</rdf:Description></rdf:RDF></x:xmpmeta>'
    ).encode()


def turnings():
    """Name, EXIF block, XMP block of the same image."""
    make = struct.pack("<HHI4s", 0x010F, 2, 3, b"ab\0\0")
    for orientation in (*range(10), 255, 256, 258):
        yield f"exif-{orientation}", exif(orientation), None
    yield "exif-big-endian", exif(6, ">"), None
    yield "exif-long", exif(6, kind=4), None
    yield "exif-long-big-endian", exif(6, ">", kind=4), None
    yield "exif-byte", exif(6, kind=1), None
    yield "exif-two-values", exif(6, count=2), None
    yield "exif-no-values", exif(6, count=0), None
    yield "exif-rational", exif(6, kind=5), None
    yield "exif-kind-99", exif(6, kind=99), None
    yield "exif-second-entry", exif(6, first=make), None
    yield "exif-repeated", exif(6, first=struct.pack("<HHIH2x", 0x0112, 3, 1, 3)), None
    yield "exif-cut", exif(6)[:14], None
    yield "exif-cut-in-entry", exif(6)[:20], None
    yield "exif-empty", b"", None
    yield "exif-garbage", b"garbage, not TIFF", None
    yield "exif-magic", exif(6, magic=43), None
    yield "exif-far", exif(6, offset=5000), None
    yield "exif-prefixed", b"Exif\0\0" + exif(6), None
    yield "xmp", None, xmp(6)
    yield "xmp-element", None, xmp(8, as_element=True)
    yield "xmp-and-exif", exif(3), xmp(6)
    yield "xmp-and-exif-without", exif(6).replace(b"\x12\x01", b"\x13\x01"), xmp(6)
    yield "xmp-9", None, xmp(9)


# --- JPEG


def segment(code, content):
    return bytes([0xFF, code]) + struct.pack(">H", len(content) + 2) + content


def segments(data):
    """(code, start, end) of the segments up to the first scan's header."""
    at = 2
    while True:
        code, length = data[at + 1], struct.unpack(">H", data[at + 2 : at + 4])[0]
        yield code, at, at + 2 + length
        if code == 0xDA:
            return
        at += 2 + length


def without(data, code):
    for found, start, end in reversed([*segments(data)]):
        if found == code:
            data = data[:start] + data[end:]
    return data


def with_first(data, *more):
    """Segments directly behind the start marker."""
    return data[:2] + b"".join(more) + data[2:]


def with_adobe(data, transform):
    return with_first(without(without(data, 0xEE), 0xE0), segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform])))


def with_ids(data, ids):
    """Other component ids in the frame and in its scans."""
    out, old = bytearray(data), None
    for code, start, _ in segments(data):
        if code in (0xC0, 0xC1, 0xC2):
            old = [data[start + 10 + 3 * i] for i in range(data[start + 9])]
            for i, new in enumerate(ids):
                out[start + 10 + 3 * i] = new
        if code == 0xDA:
            for i in range(data[start + 4]):
                out[start + 5 + 2 * i] = ids[old.index(data[start + 5 + 2 * i])]
    return bytes(out)


class Bits:
    """Coded data with stuffed bytes."""

    def __init__(self):
        self.out, self.value, self.count = bytearray(), 0, 0

    def put(self, value, count):
        self.value, self.count = (self.value << count) | value, self.count + count
        while self.count >= 8:
            self.count -= 8
            byte = (self.value >> self.count) & 255
            self.out += bytes([byte, 0]) if byte == 255 else bytes([byte])
        self.value &= (1 << self.count) - 1

    def aligned(self):
        self.put((1 << (-self.count % 8)) - 1, -self.count % 8)
        found, self.out = bytes(self.out), bytearray()
        return found


# Huffman tables without any statistics: twelve sizes of four bits each; all symbols but the last two of eight bits.
SIZES = bytes([0, 0, 0, 12]) + bytes(12) + bytes(range(12))
SYMBOLS = bytes(7) + bytes([254, 2]) + bytes(7) + bytes(range(256))


def put_symbol(bits, symbol):
    if symbol < 254:
        bits.put(symbol, 8)
    else:
        bits.put(508 + symbol - 254, 9)


def jpeg(planes, factors, interleaved=True, restart=0, ids=(1, 2, 3, 4), width=37, height=29, code=0xC0):
    """A baseline JPEG of full-size planes with any sampling factors, all quantised by one small step."""
    most_h, most_v = (max(f[i] for f in factors) for i in (0, 1))
    units_x, units_y = -(-width // (8 * most_h)), -(-height // (8 * most_v))
    basis = np.array([[np.sqrt((1 if u else 0.5) / 4) * np.cos((2 * x + 1) * u * np.pi / 16) for x in range(8)] for u in range(8)])
    blocks = []
    for plane, (h, v) in zip(planes, factors):
        padded = np.pad(plane.astype(float), ((0, units_y * 8 * most_v - height), (0, units_x * 8 * most_h - width)), "edge")
        step_x, step_y = most_h / h, most_v / v
        rows, columns = (np.arange(units * 8 * f) for units, f in ((units_y, v), (units_x, h)))
        small = padded[(rows * step_y).astype(int)[:, None], (columns * step_x).astype(int)[None]]
        found = {}
        for y in range(units_y * v):
            for x in range(units_x * h):
                block = small[8 * y : 8 * y + 8, 8 * x : 8 * x + 8] - 128
                found[x, y] = np.rint(basis @ block @ basis.T / 4).astype(int).reshape(-1)[ZIGZAG]
        blocks.append(found)

    bits = Bits()

    def magnitude(value):
        size = int(abs(value)).bit_length()
        return size, value if value >= 0 else value + (1 << size) - 1

    def put_block(block, before):
        size, coded = magnitude(block[0] - before)
        bits.put(size, 4)
        bits.put(int(coded), size)
        run = 0
        for value in block[1:]:
            if value == 0:
                run += 1
                continue
            while run > 15:
                put_symbol(bits, 0xF0)
                run -= 16
            size, coded = magnitude(value)
            put_symbol(bits, run << 4 | size)
            bits.put(int(coded), size)
            run = 0
        if run:
            put_symbol(bits, 0)
        return block[0]

    def scan(parts):
        head = segment(0xDA, bytes([len(parts)]) + b"".join(bytes([ids[i], 0]) for i in parts) + b"\0\x3f\0")
        before, data, units = dict.fromkeys(parts, 0), b"", 0
        if len(parts) == 1:
            h, v = factors[parts[0]]
            across, down = (-(-size * of // (8 * most)) for size, of, most in ((width, h, most_h), (height, v, most_v)))
            order = [[(parts[0], x, y)] for y in range(down) for x in range(across)]
        else:
            order = [
                [(i, x * factors[i][0] + dx, y * factors[i][1] + dy) for i in parts for dy in range(factors[i][1]) for dx in range(factors[i][0])]
                for y in range(units_y) for x in range(units_x)
            ]  # fmt: skip
        for unit in order:
            if restart and units and units % restart == 0:
                data += bits.aligned() + bytes([0xFF, 0xD0 + (units // restart - 1) % 8])
                before = dict.fromkeys(parts, 0)
            for i, x, y in unit:
                before[i] = put_block(blocks[i][x, y], before[i])
            units += 1
        return head + data + bits.aligned()

    frame = struct.pack(">BHHB", 8, height, width, len(planes)) + b"".join(bytes([ids[i], h << 4 | v, 0]) for i, (h, v) in enumerate(factors))
    out = b"\xff\xd8" + segment(0xDB, b"\0" + b"\4" * 64) + segment(code, frame) + segment(0xC4, b"\0" + SIZES) + segment(0xC4, b"\x10" + SYMBOLS)
    if restart:
        out += segment(0xDD, struct.pack(">H", restart))
    every = list(range(len(planes)))
    return out + (scan(every) if interleaved else b"".join(scan([i]) for i in every)) + b"\xff\xd9"


def jpegs(draw):
    rgb = picture()
    colours = [np.asarray(plane) for plane in rgb.convert("YCbCr").split()]
    inks = [np.asarray(plane) for plane in rgb.convert("CMYK").split()]
    for subsampling in (0, 1, 2):
        for progressive in (False, True):
            name = f"jpeg-{'progressive-' if progressive else ''}subsampled-{subsampling}"
            yield name, saved(rgb, "JPEG", quality=90, subsampling=subsampling, progressive=progressive)
    for width, height in ((1, 1), (1, 40), (40, 1), (7, 9), (8, 8), (16, 16), (17, 33), (2000, 2), (2, 2000)):
        for subsampling in (0, 2):
            yield f"jpeg-{width}x{height}-{subsampling}", saved(picture(width, height), "JPEG", quality=90, subsampling=subsampling)
    yield "jpeg-low-quality", saved(rgb, "JPEG", quality=5)
    yield "jpeg-best-quality", saved(rgb, "JPEG", quality=100, subsampling=0)
    yield "jpeg-grey", saved(rgb.convert("L"), "JPEG", quality=90)
    yield "jpeg-grey-progressive", saved(rgb.convert("L"), "JPEG", quality=90, progressive=True)
    yield "jpeg-optimised", saved(rgb, "JPEG", quality=90, optimize=True)
    for blocks in (1, 3, 7):
        yield f"jpeg-restart-{blocks}", saved(rgb, "JPEG", quality=90, restart_marker_blocks=blocks)
    yield "jpeg-restart-progressive", saved(rgb, "JPEG", quality=90, restart_marker_rows=1, progressive=True)
    yield "jpeg-rgb", saved(rgb, "JPEG", quality=90, subsampling=0, keep_rgb=True)
    yield "jpeg-cmyk", saved(rgb.convert("CMYK"), "JPEG", quality=95)
    cmyk = saved(rgb.convert("CMYK"), "JPEG", quality=95)
    yield "jpeg-cmyk-progressive", saved(rgb.convert("CMYK"), "JPEG", quality=95, progressive=True)
    yield "jpeg-cmyk-no-adobe", without(cmyk, 0xEE)
    yield "jpeg-ycck", with_adobe(cmyk, 2)
    yield "jpeg-cmyk-adobe-1", with_adobe(cmyk, 1)
    plain = saved(rgb, "JPEG", quality=90, subsampling=0)
    yield "jpeg-no-jfif", without(plain, 0xE0)
    for transform in (0, 1, 2):
        yield f"jpeg-adobe-{transform}", with_adobe(plain, transform)
        yield f"jpeg-jfif-adobe-{transform}", with_first(plain, segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform])))
    yield "jpeg-adobe-short", with_first(without(plain, 0xE0), segment(0xEE, b"Adobe"))
    for name, ids in (("rgb", b"RGB"), ("zero", b"\0\1\2"), ("odd", b"\7\x22\x80"), ("lower-rgb", b"rgb"), ("ycc", b"YCc")):
        yield f"jpeg-ids-{name}", with_ids(without(plain, 0xE0), ids)
        yield f"jpeg-jfif-ids-{name}", with_ids(plain, ids)
    yield "jpeg-ids-same", with_ids(plain, b"\1\1\1")
    for name, first in (
        ("units-9", b"JFIF\0\1\1\x09\0\1\0\1\0\0"),
        ("density-0", b"JFIF\0\1\1\1\0\0\0\0\0\0"),
        ("version-9", b"JFIF\0\x09\1\1\0\1\0\1\0\0"),
        ("short", b"JFIF\0"),
        ("thumbnail", b"JFIF\0\1\1\0\0\1\0\1\1\1abc"),
    ):
        yield f"jpeg-jfif-{name}", with_first(without(plain, 0xE0), segment(0xE0, first))
    yield "jpeg-icc", saved(rgb, "JPEG", quality=90, icc_profile=b"not a profile")
    yield "jpeg-comment", with_first(plain, segment(0xFE, b"a comment with \xff\xd9 inside"))
    yield "jpeg-odd-application", with_first(plain, *(segment(code, b"?" * code) for code in range(0xE2, 0xEE)))
    yield "jpeg-mpo", saved(rgb, "MPO", save_all=True, append_images=[rgb.rotate(180)], quality=90)

    three = [(1, 1)] * 3
    for name, factors in (
        ("411", [(4, 1), (1, 1), (1, 1)]), ("440", [(1, 2), (1, 1), (1, 1)]), ("410", [(4, 2), (1, 1), (1, 1)]), ("441", [(1, 4), (1, 1), (1, 1)]),
        ("all-2x2", [(2, 2)] * 3), ("all-2x1", [(2, 1)] * 3), ("chroma-differ", [(2, 2), (2, 1), (1, 2)]), ("cr-full", [(2, 2), (1, 1), (2, 2)]),
        ("chroma-larger", [(1, 1), (2, 2), (2, 2)]), ("cb-larger", [(1, 1), (2, 1), (1, 1)]), ("3x1", [(3, 1), (1, 1), (1, 1)]), ("3x2", [(3, 1), (2, 1), (1, 1)]),
        ("444", three), ("420", [(2, 2), (1, 1), (1, 1)]), ("422", [(2, 1), (1, 1), (1, 1)]),
    ):  # fmt: skip
        yield f"jpeg-sampled-{name}", jpeg(colours, factors)
        yield f"jpeg-sampled-{name}-scans", jpeg(colours, factors, interleaved=False)
    yield "jpeg-sampled-420-restart", jpeg(colours, [(2, 2), (1, 1), (1, 1)], restart=2)
    yield "jpeg-sampled-444-scans-restart", jpeg(colours, three, interleaved=False, restart=3)
    yield "jpeg-extended", jpeg(colours, three, code=0xC1)
    yield "jpeg-one-component-2x2", jpeg(colours[:1], [(2, 2)])
    yield "jpeg-two-components", jpeg(colours[:2], three[:2])
    yield "jpeg-four-components", jpeg(inks, [(1, 1)] * 4)
    yield "jpeg-four-components-sampled", jpeg(inks, [(2, 2), (1, 1), (1, 1), (2, 2)])
    yield "jpeg-four-components-scans", jpeg(inks, [(1, 1)] * 4, interleaved=False)

    def in_frame(offset, value, data=plain):
        out = bytearray(data)
        start = next(start for code, start, _ in segments(data) if code in (0xC0, 0xC2))
        out[start + offset : start + offset + len(value)] = value
        return bytes(out)

    yield "jpeg-12-bit", in_frame(4, b"\x0c")
    yield "jpeg-arithmetic", in_frame(1, b"\xc9")
    yield "jpeg-lossless", in_frame(1, b"\xc3")
    yield "jpeg-hierarchical", in_frame(1, b"\xc5")
    yield "jpeg-bomb", in_frame(5, b"\xff\xff\xff\xff")
    yield "jpeg-no-height", in_frame(5, b"\0\0")
    yield "jpeg-no-width", in_frame(7, b"\0\0")
    yield "jpeg-taller", in_frame(5, struct.pack(">H", 61))
    yield "jpeg-shorter", in_frame(5, struct.pack(">H", 16))
    yield "jpeg-no-tables", without(plain, 0xC4)
    yield "jpeg-no-quantisation", without(plain, 0xDB)
    yield "jpeg-no-frame", without(plain, 0xC0)
    yield "jpeg-no-scan", plain[: [*segments(plain)][-1][1]] + b"\xff\xd9"
    yield "jpeg-two-frames", with_first(plain, plain[slice(*next((s, e) for c, s, e in segments(plain) if c == 0xC0))])

    progressive = saved(rgb, "JPEG", quality=90, progressive=True)
    for name, data in (("baseline", plain), ("progressive", progressive), ("restart", saved(rgb, "JPEG", quality=90, restart_marker_blocks=3))):
        for at in np.linspace(3, len(data) - 1, 9).astype(int):
            yield f"jpeg-{name}-cut-{at}", data[:at]
        for at in np.linspace(len(data) // 2, len(data) - 20, 3).astype(int):
            yield f"jpeg-{name}-cut-{at}-ended", data[:at] + b"\xff\xd9"
        for seed in range(14):
            damaged = bytearray(data)
            damaged[random.Random(seed).randrange(2, len(data) - 2)] ^= 1 << seed % 8
            yield f"jpeg-{name}-flipped-{seed}", bytes(damaged)
    yield "jpeg-no-end", plain[:-2]
    yield "jpeg-trailing", plain + b"garbage behind the end"
    yield "jpeg-trailing-zeros", plain + bytes(999)
    yield "jpeg-twice", plain + saved(rgb.rotate(180), "JPEG")
    yield "jpeg-garbage-between", with_first(plain, b"garbage")
    yield "jpeg-zeros-between", with_first(plain, bytes(6))
    yield "jpeg-segment-behind-data", plain[:-2] + segment(0xE5, b"ab") + plain[-2:]
    yield "jpeg-progressive-segment-behind-data", progressive[:-2] + segment(0xE5, b"ab") + progressive[-2:]
    yield "jpeg-comment-behind-data", plain[:-2] + segment(0xFE, b"ab") + plain[-2:]
    yield "jpeg-zeros-behind-data", plain[:-2] + bytes(5) + plain[-2:]
    yield "jpeg-fill-bytes", with_first(plain, b"\xff\xff\xff")
    yield "jpeg-two-starts", plain[:2] + plain
    yield "jpeg-restart-missing", (lambda data: data.replace(b"\xff\xd1", b"", 1))(saved(rgb, "JPEG", quality=90, restart_marker_blocks=3))
    yield "jpeg-restart-swapped", (lambda data: data.replace(b"\xff\xd1", b"\xff\xd5", 1))(saved(rgb, "JPEG", quality=90, restart_marker_blocks=3))
    at = [*segments(plain)][-1][1]
    yield "jpeg-zeros-before-scan", plain[:at] + bytes(6) + plain[at:]
    yield "jpeg-length-0", with_first(plain, b"\xff\xe5\0\0")
    yield "jpeg-length-1", with_first(plain, b"\xff\xe5\0\1")
    yield "jpeg-length-far", with_first(plain, b"\xff\xe5\xff\xff")
    for name, block, text in turnings():
        more = [segment(0xE1, b"Exif\0\0" + block)] if block is not None else []
        more += [segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + text)] if text else []
        yield f"jpeg-{name}", with_first(plain, *more)
    first, second = exif(6)[:20], exif(6)[20:]
    yield "jpeg-exif-in-two", with_first(plain, segment(0xE1, b"Exif\0\0" + first), segment(0xE1, b"Exif\0\0" + second))
    yield "jpeg-exif-twice", with_first(plain, segment(0xE1, b"Exif\0\0" + exif(6)), segment(0xE1, b"Exif\0\0" + exif(3)))
    yield "jpeg-exif-behind-tables", (lambda at: plain[:at] + segment(0xE1, b"Exif\0\0" + exif(6)) + plain[at:])([*segments(plain)][-1][1])
    yield "jpeg-exif-unterminated", with_first(plain, segment(0xE1, b"Exif\0\xff" + exif(6)))


def png_turnings(draw):
    rgb = samples_of(draw, 13, 11, 3, 8)
    for name, block, text in turnings():
        before = chunk(b"eXIf", block) if block is not None else b""
        before += chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text) if text else b""
        yield f"png-{name}", png(2, 8, rgb, before=before)
    yield "png-exif-after", png(2, 8, rgb, after=chunk(b"eXIf", exif(6)))
    yield "png-xmp-after", png(2, 8, rgb, after=chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6)))
    yield "png-xmp-compressed", png(2, 8, rgb, before=chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp(6))))
    profile = (b"Exif\0\0" + exif(6)).hex()
    text = f"\nexif\n{len(profile) // 2:8}\n" + "\n".join(profile[i : i + 72] for i in range(0, len(profile), 72)) + "\n"
    yield "png-raw-profile", png(2, 8, rgb, before=chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text.encode())))
    yield "png-raw-profile-text", png(2, 8, rgb, before=chunk(b"tEXt", b"Raw profile type exif\0" + text.encode()))


# --- WebP


def riff(*chunks):
    body = b"WEBP" + b"".join(name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2) for name, content in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def riff_chunks(data):
    at, found = 12, []
    while at < len(data):
        size = struct.unpack("<I", data[at + 4 : at + 8])[0]
        found.append((data[at : at + 4], data[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    return found


def webps(draw):
    rgb = picture()
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray((np.arange(37 * 29) % 256).astype(np.uint8).reshape(29, 37), "L"))
    yield "webp-lossless", saved(rgb, "WEBP", lossless=True)
    yield "webp-lossless-alpha", saved(rgba, "WEBP", lossless=True, exact=True)
    yield "webp-lossless-alpha-inexact", saved(rgba, "WEBP", lossless=True)
    yield "webp-lossless-palette", saved(rgb.quantize(7).convert("RGB"), "WEBP", lossless=True)
    yield "webp-lossless-grey", saved(rgb.convert("L"), "WEBP", lossless=True)
    yield "webp-lossless-noise", saved(Image.fromarray(draw.integers(0, 256, (40, 50, 3), np.uint8)), "WEBP", lossless=True)
    yield "webp-near-lossless", saved(rgb, "WEBP", lossless=True, quality=20)
    for quality in (1, 50, 90, 100):
        yield f"webp-lossy-{quality}", saved(rgb, "WEBP", quality=quality)
    yield "webp-lossy-alpha", saved(rgba, "WEBP", quality=90)
    yield "webp-lossy-alpha-low", saved(rgba, "WEBP", quality=90, alpha_quality=10)
    for method in (0, 6):
        yield f"webp-lossy-method-{method}", saved(rgb, "WEBP", quality=80, method=method)
    for width, height in ((1, 1), (1, 40), (40, 1), (17, 33), (1500, 2), (2, 1500)):
        yield f"webp-lossy-{width}x{height}", saved(picture(width, height), "WEBP", quality=90)
        yield f"webp-lossless-{width}x{height}", saved(picture(width, height), "WEBP", lossless=True)
    frames = [rgba, rgba.rotate(180), rgba.rotate(90)]
    yield "webp-animated-lossless", saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True, exact=True)
    yield "webp-animated-lossy", saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], quality=90)
    yield "webp-animated-opaque", saved(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(180)], lossless=True)
    yield (
        "webp-animated-background",
        saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True, exact=True, background=(10, 200, 30, 255)),
    )

    def animation(x, y, background=bytes(4), flags=0, frame=None, alpha=0x10):
        whole = riff_chunks(saved(frame or rgba, "WEBP", lossless=True, exact=True))
        picture_of = next(c for c in whole if c[0] in (b"VP8L", b"VP8 "))
        size = lambda n: struct.pack("<I", n)[:3]
        part = size(x // 2) + size(y // 2) + size(36) + size(28) + size(100) + bytes([flags])
        content = picture_of[0] + struct.pack("<I", len(picture_of[1])) + picture_of[1] + b"\0" * (len(picture_of[1]) % 2)
        head = bytes([0x02 | alpha, 0, 0, 0]) + size(59) + size(49)
        return riff((b"VP8X", head), (b"ANIM", background + b"\0\0"), (b"ANMF", part + content))

    yield "webp-animated-offset", animation(10, 12)
    yield "webp-animated-offset-coloured", animation(10, 12, bytes([1, 200, 30, 255]))
    yield "webp-animated-offset-no-blend", animation(10, 12, bytes([1, 200, 30, 255]), 2)
    yield "webp-animated-offset-opaque", animation(10, 12, bytes([1, 200, 30, 255]), frame=rgb, alpha=0)
    yield "webp-animated-outside", animation(40, 12)

    lossy, lossless = saved(rgb, "WEBP", quality=90), saved(rgb, "WEBP", lossless=True)
    icc = saved(rgb, "WEBP", quality=90, icc_profile=b"not a profile")
    yield "webp-icc", icc
    for name, data in (("lossy", lossy), ("lossless", lossless), ("icc", icc)):
        for at in np.linspace(4, len(data) - 1, 6).astype(int):
            yield f"webp-{name}-cut-{at}", data[:at]
        for seed in range(10):
            damaged = bytearray(data)
            damaged[random.Random(seed).randrange(8, len(data))] ^= 1 << seed % 8
            yield f"webp-{name}-flipped-{seed}", bytes(damaged)
        yield f"webp-{name}-trailing", data + b"garbage behind the end"
        yield f"webp-{name}-short-riff", data[:4] + struct.pack("<I", len(data) - 40) + data[8:]
        yield f"webp-{name}-long-riff", data[:4] + struct.pack("<I", len(data) + 40) + data[8:]
    (picture_of,) = riff_chunks(lossless)
    extended = lambda flags, width=37, height=29: bytes([flags, 0, 0, 0]) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    yield "webp-extended", riff((b"VP8X", extended(0)), picture_of)
    yield "webp-extended-other-size", riff((b"VP8X", extended(0, 50, 40)), picture_of)
    yield "webp-extended-bomb", riff((b"VP8X", extended(0, 16384, 16384)), picture_of)
    yield "webp-extended-two", riff((b"VP8X", extended(0)), picture_of, picture_of)
    yield "webp-extended-none", riff((b"VP8X", extended(0)))
    yield "webp-unknown-chunk", riff((b"VP8X", extended(0)), (b"????", b"abc"), picture_of)
    yield "webp-unknown-first", riff((b"????", b"abc"), picture_of)
    yield "webp-simple-unknown-after", riff(picture_of, (b"????", b"abc"))
    for name, block, text in turnings():
        flags = (8 if block is not None else 0) | (4 if text else 0)
        more = [(b"EXIF", block)] if block is not None else []
        more += [(b"XMP ", text)] if text else []
        yield f"webp-{name}", riff((b"VP8X", extended(flags)), picture_of, *more)
    yield "webp-exif-no-flag", riff((b"VP8X", extended(0)), picture_of, (b"EXIF", exif(6)))
    yield "webp-exif-first", riff((b"VP8X", extended(8)), (b"EXIF", exif(6)), picture_of)
    yield "webp-exif-twice", riff((b"VP8X", extended(8)), picture_of, (b"EXIF", exif(6)), (b"EXIF", exif(3)))


def others():
    rgb = picture()
    for kind, options in (
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("AVIF", {}),
        ("JPEG2000", {}),
        ("ICO", {}),
        ("PPM", {}),
        ("TGA", {}),
        ("PCX", {}),
        ("DDS", {}),
    ):
        yield f"other-{kind.lower()}", saved(rgb, kind, **options)
    yield "other-heic", b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(100)
    yield "other-svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    yield "other-html", b"<!DOCTYPE html><html>not found</html>"
    yield "other-json", b'{"error": "not found"}'
    yield "other-empty", b""
    yield "other-zeros", bytes(500)
    yield "other-text", b"a caption, not an image"
    yield "other-jpeg-behind-a-line", b"\n" + saved(rgb, "JPEG")
    yield "png-too-large", saved(Image.new("1", (9460, 9460)), "PNG")


def every():
    """(name, bytes) of every file."""
    draw = np.random.default_rng(7)
    yield from pngs(draw)
    yield from png_turnings(draw)
    yield from jpegs(draw)
    yield from webps(draw)
    yield from others()
