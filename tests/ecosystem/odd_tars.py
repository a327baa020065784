"""Some hundred odd tar files of image-text pairs, the same ones in every run."""

import gzip
import io
import struct
import tarfile

import numpy as np
from odd_images import picture, png, saved


def image(number):
    """A PNG of one pixel, another one for each number."""
    return png(2, 8, np.array([[[number % 256, number // 256, 7]]]))


def header(name, size=0, kind=b"0", link=b"", magic=b"ustar\x0000", prefix=b"", fields=None):
    """A header block by hand."""
    octal = lambda value, width: f"{value:0{width - 1}o}".encode() + b"\0"
    size = size if isinstance(size, bytes) else octal(size, 12)
    parts = [
        name.ljust(100, b"\0"), octal(0o644, 8), octal(0, 8), octal(0, 8), size, octal(0, 12), b" " * 8, kind, link.ljust(100, b"\0"),
        magic.ljust(8, b"\0"), b"\0" * 80, prefix.ljust(155, b"\0"),
    ]  # fmt: skip
    block = b"".join(parts).ljust(512, b"\0")
    if fields:
        block = fields(block)
    return block[:148] + f"{sum(block):06o}\0 ".encode() + block[156:]


def padded(data):
    return data + bytes(-len(data) % 512)


def member(name, data, **options):
    return header(name.encode(), len(data), **options) + padded(data)


END = bytes(1024)


def pax(fields, kind=b"x"):
    records = b""
    for key, value in fields.items():
        value = value if isinstance(value, bytes) else value.encode()
        length = len(key) + len(value) + 3
        while len(record := f"{length} {key}=".encode() + value + b"\n") != length:
            length = len(record)
        records += record
    return header(b"PaxHeader", len(records), kind=kind) + padded(records)


def tar(*members, form=tarfile.USTAR_FORMAT):
    """An archive of (name, bytes) or `TarInfo`s, as the standard library writes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for found in members:
            if isinstance(found, tarfile.TarInfo):
                archive.addfile(found)
                continue
            name, data = found
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def entry(name, kind, link=""):
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, link
    return found


def pairs(*keys, image_as="png", text_as="txt"):
    """An image and a caption for each key."""
    members = []
    for number, key in enumerate(keys):
        members += [(f"{key}.{image_as}", image(number)), (f"{key}.{text_as}", f"caption {number}".encode())]
    return members


def every():
    """(name, bytes) of every archive."""
    forms = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
    for form, code in forms.items():
        yield f"plain-{form}", tar(*pairs("a", "b", "c"), form=code)
        yield f"unicode-{form}", tar(*pairs("été", "猫", "e\u0301", "🙂"), form=code)
        yield f"folders-{form}", tar(*pairs("x/a", "x/b", "y/a", "y/z/a"), form=code)
        yield f"spaces-{form}", tar(*pairs("a b", " c", "d ", "e\tf", "g\nh"), form=code)
        yield f"long-folder-{form}", tar(*pairs("f" * 90 + "/" + "g" * 60 + "/a", "f" * 90 + "/" + "g" * 60 + "/b"), form=code)
        if form != "ustar":
            yield f"long-name-{form}", tar(*pairs("n" * 200, "n" * 199 + "o", "short"), form=code)
            yield f"longest-name-{form}", tar(*pairs("/".join("n" * 100 for _ in range(9))), form=code)
            yield f"overlong-name-{form}", tar(*pairs("/".join("n" * 100 for _ in range(20))), form=code)
        yield f"links-{form}", tar(*pairs("a"), entry("b.png", tarfile.SYMTYPE, "a.png"), *pairs("c"), form=code)
        yield f"hard-links-{form}", tar(*pairs("a"), entry("b.png", tarfile.LNKTYPE, "a.png"), *pairs("c"), form=code)
        yield f"directories-{form}", tar(entry("x", tarfile.DIRTYPE), *pairs("x/a"), entry("y.d", tarfile.DIRTYPE), *pairs("y.d/a"), form=code)
    yield "v7", b"".join(member(name, data, magic=b"", kind=b"\0") for name, data in pairs("a", "b")) + END
    yield "v7-directory", header(b"x/", magic=b"", kind=b"\0") + b"".join(member(name, data, magic=b"", kind=b"\0") for name, data in pairs("x/a")) + END
    yield "contiguous", b"".join(member(name, data, kind=b"7") for name, data in pairs("a", "b")) + END
    yield "unknown-kind", b"".join(member(name, data) for name, data in pairs("a")) + member("b.png", image(9), kind=b"Q") + END
    for name, kind in (("fifo", tarfile.FIFOTYPE), ("character-device", tarfile.CHRTYPE), ("block-device", tarfile.BLKTYPE)):
        yield name, tar(*pairs("a"), entry("b.png", kind), *pairs("c"))
    yield "volume-label", member("label", b"", kind=b"V") + tar(*pairs("a"))

    yield "dots-in-names", tar(*pairs("a"), ("zoom1.5x-3.png", image(9)), *pairs("b"))
    yield "dots-in-folders", tar(*pairs("v1.0/a", "v1.0/b", "x.y/z.w/c", "./d.e/f"))
    yield "dot-slash", tar(*pairs("./a", "./b", "./x/c"))
    yield "dot-slash-twice", tar(*pairs("././a", "./b"))
    yield "dot-slash-mixed", tar(("./a.png", image(1)), ("a.txt", b"one"))
    yield "dot-folder", tar(*pairs("x/./a", "x/./b"))
    yield "double-slash", tar(*pairs("x//a"))
    yield "absolute", tar(*pairs("/x/a"))
    yield "upward", tar(*pairs("../a"))
    yield "upward-inside", tar(*pairs("x/../a"))
    yield "backslash", tar(*pairs("x\\a", "x\\b"))
    yield "drive", tar(*pairs("C:a"))
    yield "same-name-in-folders", tar(*pairs("x/a", "y/a", "a"))
    yield "prefix-keys", tar(*pairs("a", "ab", "a-1", "a_"))
    yield "case-of-keys", tar(*pairs("A", "a"))
    for image_as, text_as in (("PNG", "TXT"), ("Png", "Txt"), ("JPG", "txt"), ("jpeg", "txt"), ("webp", "txt")):
        data = {"JPG": saved(picture(9, 9), "JPEG"), "jpeg": saved(picture(9, 9), "JPEG"), "webp": saved(picture(9, 9), "WEBP")}.get(image_as, image(1))
        yield f"extension-{image_as}-{text_as}", tar((f"a.{image_as}", data), (f"a.{text_as}", b"one"))
    yield "wrong-extension", tar(("a.png", saved(picture(9, 9), "JPEG")), ("a.txt", b"one"))
    yield "empty-extension", tar(("a.", b"x"), *pairs("a"))
    yield "extension-with-space", tar(("a.png ", image(1)), ("a.txt", b"one"))
    yield "no-extension", tar(("README", b"read me"), *pairs("a"), ("LICENSE", b"x"))
    yield "no-extension-between", tar(("a.png", image(1)), ("README", b"x"), ("a.txt", b"one"))
    yield "text-first", tar(("a.txt", b"one"), ("a.png", image(1)), ("b.txt", b"two"), ("b.png", image(2)))
    yield "other-members", tar(("a.json", b"{}"), ("a.png", image(1)), ("a.cls", b"3"), ("a.txt", b"one"), ("a.npy", b"x"), *pairs("b"))
    yield "segmentation", tar(("a.png", image(1)), ("a.seg.png", image(2)), ("a.txt", b"one"), ("a.seg.txt", b"no"))
    yield "two-images", tar(("a.png", image(1)), ("a.jpg", saved(picture(9, 9), "JPEG")), ("a.txt", b"one"))
    yield "two-images-of-one-kind", tar(("a.png", image(1)), ("a.PNG", image(2)), ("a.txt", b"one"))
    yield "two-captions", tar(("a.png", image(1)), ("a.txt", b"one"), ("a.TXT", b"two"))
    yield "two-others", tar(("a.png", image(1)), ("a.json", b"1"), ("a.JSON", b"2"), ("a.txt", b"one"))
    yield "repeated-adjacent", tar(*pairs("a"), *pairs("a"))
    yield "repeated-apart", tar(*pairs("a", "b"), *pairs("a"))
    yield "interleaved", tar(("a.png", image(1)), ("b.png", image(2)), ("a.txt", b"one"), ("b.txt", b"two"))
    yield "no-caption", tar(*pairs("a"), ("b.png", image(5)), *pairs("c"))
    yield "no-image", tar(*pairs("a"), ("b.txt", b"two"), *pairs("c"))
    yield "neither", tar(*pairs("a"), ("b.json", b"{}"), ("b.cls", b"1"), *pairs("c"))
    yield "only-others", tar(("b.json", b"{}"), ("c.cls", b"1"))
    yield "gif", tar(("a.gif", saved(picture(9, 9), "GIF")), ("a.txt", b"one"))
    yield "gif-as-jpg", tar(("a.jpg", saved(picture(9, 9), "GIF")), ("a.txt", b"one"))
    yield "empty-image", tar(("a.png", b""), ("a.txt", b"one"))
    yield "empty-caption", tar(("a.png", image(1)), ("a.txt", b""))
    yield "empty-other", tar(("a.png", image(1)), ("a.json", b""), ("a.txt", b"one"))
    yield "cut-image", tar(("a.png", image(1)[:-30]), ("a.txt", b"one"))

    for name in ("__key__", "__meta__", "__a.png__", "__"):
        yield f"meta-{name}", tar((name, b"x"), *pairs("a"))
    yield "meta-pair", tar(*pairs("__key__"), *pairs("a"))
    yield "meta-between", tar(("a.png", image(1)), ("__note__", b"x"), ("a.txt", b"one"))
    yield "meta-folder", tar(*pairs("__meta__/x"), *pairs("a"))
    yield "meta-folder-between", tar(("a.png", image(1)), ("__meta__/x.json", b"{}"), ("a.txt", b"one"))
    yield "meta-folder-deeper", tar(*pairs("x/__meta__/y"), *pairs("a"))
    yield "meta-folder-dot-slash", tar(*pairs("./__meta__/x"), *pairs("./a"))
    yield "meta-inside", tar(("x/__key__", b"x"), *pairs("x/a"))
    yield "hidden", tar((".DS_Store", b"x"), ("._a.png", image(9)), *pairs("a"), (".a.txt", b"x"))
    yield "hidden-between", tar(("a.png", image(1)), ("._a.txt", b"x"), ("a.txt", b"one"))
    yield "hidden-in-folder", tar(*pairs("x/a"), ("x/._b.png", image(9)), *pairs("x/b"))
    yield "hidden-in-folder-between", tar(("x/a.png", image(1)), ("x/._a.txt", b"x"), ("x/a.txt", b"one"))
    yield "hidden-pair-in-folder", tar(("x/.png", image(1)), ("x/.txt", b"one"), *pairs("x/a"))
    yield "hidden-folder", tar(*pairs(".cache/a"), *pairs("a"))
    yield "resource-forks", tar(*pairs("x/a"), ("__MACOSX/x/._a.png", b"\0\5\x16\7" + bytes(90)), ("__MACOSX/x/._a.txt", b"\0\5\x16\7"))
    yield "dots-only", tar(("...png", image(1)), ("...txt", b"one"), *pairs("a"))

    texts = {
        "plain": b"a cat", "spaces": b"  a cat \t", "line": b"a cat\n", "crlf": b"a cat\r\n", "lines": b"a cat\non a mat\n", "bom": b"\xef\xbb\xbfa cat",
        "bom-twice": b"\xef\xbb\xbf\xef\xbb\xbfa cat", "utf16": "a cat".encode("utf-16"), "latin": b"caf\xe9", "unicode": "une été 猫 🙂".encode(), "nul": b"a\0cat",
        "no-break": "\u00a0a cat\u3000".encode(), "zero-width": "a\u200bcat".encode(), "zero-width-around": "\u200ba cat\u200b".encode(), "blank": b" \n", "invisible": "\u200b".encode(),
        "controls": b"\x1c\x1da cat\x1f", "next-line": "\u0085a cat\u2028".encode(), "long": b"cat " * 9000, "overlong": b"cat " * 17000,
    }  # fmt: skip
    for name, text in texts.items():
        yield f"caption-{name}", tar(("a.png", image(1)), ("a.txt", text))

    yield "latin-names", b"".join(header(name, len(data)) + padded(data) for name, data in ((b"\xe9t\xe9.png", image(1)), (b"\xe9t\xe9.txt", b"one"))) + END
    yield "latin-other", b"".join(member(*found) for found in pairs("a")) + header(b"\xe9.json", 2) + padded(b"{}") + END
    yield "latin-pax", pax({"path": b"\xe9t\xe9.png"}) + member("x.png", image(1)) + pax({"path": b"\xe9t\xe9.txt"}) + member("x.txt", b"one") + END
    yield "nul-in-name", b"".join(header(b"a\0b" + ending, len(data)) + padded(data) for ending, data in ((b".png", image(1)), (b".txt", b"one"))) + END
    yield "name-of-100", b"".join(member("n" * 96 + ending, data) for ending, data in ((".png", image(1)), (".txt", b"one"))) + END
    yield "prefix", b"".join(member(f"a{ending}", data, prefix=b"x/y") for ending, data in ((".png", image(1)), (".txt", b"one"))) + END
    yield (
        "prefix-in-gnu",
        b"".join(member(f"a{ending}", data, prefix=b"x/y", magic=b"ustar  \0") for ending, data in ((".png", image(1)), (".txt", b"one"))) + END,
    )
    yield "pax-path", pax({"path": "real.png"}) + member("short.png", image(1)) + pax({"path": "real.txt"}) + member("short.txt", b"one") + END
    yield (
        "pax-path-twice",
        pax({"path": "no.png"}) + pax({"path": "real.png"}) + member("short.png", image(1)) + pax({"path": "real.txt"}) + member("short.txt", b"one") + END,
    )
    yield "pax-size", pax({"size": str(len(image(1)))}) + header(b"a.png", 0) + padded(image(1)) + member("a.txt", b"one") + END
    yield "pax-times", pax({"mtime": "1.5", "atime": "2", "SCHILY.xattr.user.x": "y"}) + member("a.png", image(1)) + member("a.txt", b"one") + END
    yield "pax-global", pax({"comment": "made by git"}, b"g") + b"".join(member(*found) for found in pairs("a", "b")) + END
    yield "pax-largest", pax({"comment": "x" * ((1 << 20) - 17)}) + b"".join(member(*found) for found in pairs("a")) + END
    yield "pax-too-large", pax({"comment": "x" * (1 << 20)}) + b"".join(member(*found) for found in pairs("a")) + END
    yield "pax-global-too-large", pax({"comment": "x" * (1 << 20)}, b"g") + b"".join(member(*found) for found in pairs("a")) + END
    yield "pax-global-path", pax({"path": "all.png"}, b"g") + b"".join(member(*found) for found in pairs("a")) + END
    yield "pax-broken", header(b"PaxHeader", 9, kind=b"x") + padded(b"99 nothing") + b"".join(member(*found) for found in pairs("a")) + END
    yield "gnu-long-and-pax", header(b"././@LongLink", 9, kind=b"L") + padded(b"real.png\0") + member("short.png", image(1)) + member("real.txt", b"one") + END
    big = image(1)
    yield "size-binary", header(b"a.png", b"\x80" + bytes(3) + struct.pack(">Q", len(big))) + padded(big) + member("a.txt", b"one") + END
    yield "size-spaces", header(b"a.png", f"{len(big):11o} ".encode()) + padded(big) + member("a.txt", b"one") + END
    yield "size-negative", header(b"a.png", b"\xff" * 12) + padded(big) + member("a.txt", b"one") + END
    yield "size-huge", header(b"a.png", b"7" * 11 + b"\0") + padded(big) + member("a.txt", b"one") + END
    sparse = lambda block: block[:386] + f"{0:011o}\0{3:011o}\0".encode() + bytes(72) + b"\0" + f"{3:011o}\0".encode() + block[495:]
    yield "sparse-gnu", member("a.png", image(1)) + header(b"a.txt", 3, kind=b"S", magic=b"ustar  \0", fields=sparse) + padded(b"one") + END
    sparse_map = b"1\n0\n3\n".ljust(512, b"\0") + b"one"
    fields = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.txt", "GNU.sparse.realsize": "3"}
    yield "sparse-pax-1.0", member("a.png", image(1)) + pax(fields) + member("GNUSparseFile.0/a.txt", sparse_map) + END
    yield "sparse-pax-1.0-same-name", member("a.png", image(1)) + pax(fields) + member("a.txt", sparse_map) + END
    fields = {"GNU.sparse.size": "6", "GNU.sparse.numblocks": "1", "GNU.sparse.map": "3,3"}
    yield "sparse-pax-0.1", member("a.png", image(1)) + pax(fields) + member("a.txt", b"one") + END

    whole = tar(*pairs("a", "b"))
    bare = b"".join(member(*found) for found in pairs("a", "b"))
    yield "two-archives", whole + tar(*pairs("c"))
    yield "two-archives-split-pair", tar(("a.png", image(1))) + tar(("a.txt", b"one"))
    yield "two-archives-same-key", tar(*pairs("a")) + tar(*pairs("a"))
    yield "zeros-inside", bare + bytes(512) + b"".join(member(*found) for found in pairs("c")) + END
    yield "no-end", bare
    yield "one-end-block", bare + bytes(512)
    yield "many-end-blocks", bare + bytes(51200)
    yield "end-not-a-block", bare + bytes(700)
    yield "trailing-garbage", whole + b"garbage" * 200
    yield "trailing-short-garbage", whole + b"garbage"
    yield "leading-zeros", bytes(512) + bare + END
    yield "empty", b""
    yield "only-end", END
    for at in (300, 512, 700, 1024, 1100, 1536, 1540, 2500, 3000):
        yield f"cut-{at}", bare[:at]
    yield "no-padding-at-end", bare[: -512 + len(b"caption 1")]
    damaged = bytearray(bare)
    damaged[1024 + 3] ^= 1
    yield "wrong-checksum", bytes(damaged) + END
    damaged = bytearray(bare)
    damaged[3] ^= 1
    yield "wrong-checksum-first", bytes(damaged) + END
    signed = lambda block: block[:148] + f"{sum(b - 256 if b > 127 else b for b in block[:148] + b' ' * 8 + block[156:]):06o}\0 ".encode() + block[156:]
    yield "signed-checksum", signed(header("été.png".encode(), len(image(1)))) + padded(image(1)) + signed(header("été.txt".encode(), 3)) + padded(b"one") + END
    yield "gzip", gzip.compress(whole, mtime=0)
    yield "not-a-tar", b"a text that is no archive\n" * 99
    yield "many", tar(*pairs(*(f"{number:04}" for number in range(300))))
