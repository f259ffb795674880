"""Which language the code in a text is in, for the check ``containsCode``.

What must live here: the languages, the names that fences give them, and the signs by which a block without a name is
known. What must not: verdicts.

The signs are few and anchored, so that prose has none of them; a block may have the signs of several languages, since
some are each other's subsets.
"""

import re
from typing import Literal, get_args

import msgspec

Format = Literal[
    "SQL",
    "Python",
    "TypeScript",
    "JavaScript",
    "Java",
    "C#",
    "C++",
    "C",
    "Ruby",
    "PHP",
    "Swift",
    "Kotlin",
    "Go",
    "Rust",
    "Scala",
    "R",
    "Perl",
    "Shell",
    "HTML",
    "CSS",
    "XML",
    "JSON",
    "YAML",
    "Markdown",
    "Dockerfile",
]
FORMATS: tuple[Format, ...] = get_args(Format)

_NAMES: dict[str, Format] = {
    "py": "Python",
    "python3": "Python",
    "ts": "TypeScript",
    "tsx": "TypeScript",
    "js": "JavaScript",
    "jsx": "JavaScript",
    "mjs": "JavaScript",
    "cs": "C#",
    "csharp": "C#",
    "cpp": "C++",
    "cc": "C++",
    "cxx": "C++",
    "h": "C",
    "rb": "Ruby",
    "kt": "Kotlin",
    "golang": "Go",
    "rs": "Rust",
    "pl": "Perl",
    "sh": "Shell",
    "bash": "Shell",
    "zsh": "Shell",
    "yml": "YAML",
    "md": "Markdown",
    "docker": "Dockerfile",
    **{name.lower(): name for name in FORMATS},
}

# A line has to begin (after white space) with one of these. No repetition within another: they are quick on any text.
_LINES: dict[Format, tuple[str, ...]] = {
    "SQL": (
        r"(?i:select)\s[^\n]{0,500}\s(?i:from)\s+[\w\"`\[]",
        r"(?i:insert\s+into)\s+[\w\"`.]+\s*(?:\(|(?i:values|select)\b)",
        r"(?i:update)\s+[\w\"`.]+\s+(?i:set)\s+[\w\"`.]+\s*=",
        r"(?i:delete\s+from)\s+[\w\"`.]+\s*(?:;|$|(?i:where)\b)",
        r"(?i:(?:create|alter|drop)\s+(?:table|view|index|database|schema))\s+[\w\"`]",
    ),
    "Python": (
        r"(?:async\s+)?def\s+\w+\([^\n]{0,300}\)\s*(?:->[^\n:]{0,100})?:\s*(?:#|$)",
        r"class\s+\w+(?:\([^\n)]{0,200}\))?:\s*$",
        r"from\s+[\w.]+\s+import\s+[\w*(]",
        r"if\s+__name__\s*==",
        r"(?:for\s+\w[\w, ]{0,50}\s+in|with|while|elif|except)\s[^\n]{1,200}:\s*$",
        r"@\w[\w.]*\n\s*(?:async\s+)?(?:def|class)\s",
        r"print\([\"'f][^\n]{0,300}\)\s*$",
    ),
    "TypeScript": (
        r"(?:export\s+)?interface\s+\w+[^\n{]{0,100}\{\s*$",
        r"(?:export\s+)?type\s+\w+(?:<[^\n>]{0,50}>)?\s*=\s*[^\n]",
        r"(?:export\s+)?(?:const|let)\s+\w+\s*:\s*[\w<>\[\]{}| ]{1,80}=",
        r"(?:export\s+)?(?:async\s+)?function\s+\w+\([^\n)]{0,200}:\s*\w",
        r"import\s+type\s",
    ),
    "JavaScript": (
        r"(?:export\s+)?(?:const|let|var)\s+[\w{\[][^\n=]{0,100}=\s*[^\n]",
        r"(?:export\s+(?:default\s+)?)?(?:async\s+)?function\s*\*?\s*\w*\([^\n)]{0,200}\)\s*\{",
        r"import\s+[\w{*][^\n]{0,200}\s+from\s+[\"']",
        r"console\.\w+\(",
        r"(?:module\.)?exports(?:\.\w+)?\s*=",
    ),
    "Java": (
        r"(?:public|private|protected)\s+(?:static\s+|final\s+|abstract\s+)*(?:class|interface|enum|record)\s+\w+",
        r"public\s+static\s+void\s+main\s*\(\s*String",
        r"import\s+(?:static\s+)?(?:java|javax|org|com)\.[\w.*]+;",
        r"System\.(?:out|err)\.print",
    ),
    "C#": (
        r"using\s+System(?:\.[\w.]+)?;",
        r"namespace\s+[\w.]+\s*[;{]?\s*$",
        r"Console\.(?:Write|Read)",
        r"(?:public|private|protected|internal)\s[^\n]{0,100}\{\s*get;",
        r"(?:(?:public|private|internal)\s+)?static\s+(?:async\s+)?\w+\s+Main\s*\(",
    ),
    "C++": (
        r"#include\s*<(?:iostream|vector|string|map|memory|algorithm|cstdio|cstdlib|utility|functional)>",
        r"using\s+namespace\s+\w+;",
        r"(?:std::)?(?:cout|cerr)\s*<<",
        r"template\s*<[^\n>]{0,100}>",
        r"std::\w+",
    ),
    "C": (
        r"#include\s*[<\"][\w/]+\.h[>\"]",
        r"int\s+main\s*\((?:void|int\s+argc[^\n)]{0,60})?\)",
        r"typedef\s+(?:struct|enum|union|unsigned|int|char)\b",
        r"(?:static\s+)?(?:void|int|char|float|double|size_t)\s*\**\s*\w+\s*\([^\n)]{0,200}\)\s*\{",
    ),
    "Ruby": (
        r"def\s+(?:self\.)?\w+[?!]?(?:\([^\n)]{0,200}\))?\s*$(?=[^\0]{0,500}^\s*end\b)",
        r"require(?:_relative)?\s+['\"]",
        r"\w[\w.]{0,50}\.each\s+do\s+\|",
        r"(?:module|class)\s+[A-Z]\w*(?:\s*<\s*[A-Z][\w:]*)?\s*$(?=[^\0]{0,500}^\s*end\b)",
        r"puts\s+[\"'\w]",
    ),
    "PHP": (r"<\?php\b", r"\$\w+\s*=\s*[^\n]{1,300};\s*$(?=[^\0]{0,500}\becho\b)", r"echo\s+[\"$][^\n]{0,300};"),
    "Swift": (
        r"import\s+(?:Foundation|UIKit|SwiftUI|Combine)\b",
        r"func\s+\w+\([^\n)]{0,200}\)\s*(?:throws\s*)?(?:->\s*[\w\[\]?<>]+\s*)?\{",
        r"guard\s+let\s",
        r"(?:let|var)\s+\w+\s*:\s*(?:Int|String|Double|Bool|\[)[\w\]?]*\s*=",
    ),
    "Kotlin": (
        r"(?:suspend\s+|private\s+|override\s+)*fun\s+(?:<[^\n>]{0,30}>\s*)?[\w.]+\([^\n)]{0,200}\)",
        r"data\s+class\s+\w+\(",
        r"val\s+\w+(?:\s*:\s*\w+)?\s*=\s*[^\n;]{1,200}$(?=[^\0]{0,500}\bfun\b)",
    ),
    "Go": (
        r"package\s+\w+\s*$",
        r"func\s+(?:\(\w+\s+\*?\w+\)\s*)?\w+\([^\n)]{0,200}\)\s*(?:[\w*\[\].]+|\([^\n)]{0,100}\))?\s*\{\s*$",
        r"\w+(?:,\s*\w+)*\s*:=\s*[^\n]",
        r"fmt\.(?:Print|Sprint|Errorf)",
    ),
    "Rust": (
        r"(?:pub(?:\([\w ]+\))?\s+)?(?:async\s+)?fn\s+\w+(?:<[^\n>]{0,80}>)?\([^\n)]{0,200}\)",
        r"let\s+mut\s+\w+",
        r"use\s+(?:std|crate|super)::",
        r"impl(?:<[^\n>]{0,50}>)?\s+\w[^\n]{0,80}\{",
        r"println!\(",
        r"#\[derive\(",
    ),
    "Scala": (
        r"(?:case\s+)?(?:object|class|trait)\s+\w+[^\n]{0,100}(?:\bextends\b|\{)(?=[^\0]{0,500}\b(?:def|val)\s)",
        r"def\s+\w+(?:\[[^\n\]]{0,30}\])?(?:\([^\n)]{0,200}\))?\s*(?::\s*[\w\[\], ]{1,60})?=\s*[^\n=]",
        r"import\s+scala\.",
    ),
    "R": (r"[\w.]+\s*<-\s*\S", r"library\(\w+\)\s*$"),
    "Perl": (
        r"use\s+(?:strict|warnings)\b",
        r"my\s+[\$@%(]\s*\w",
        r"sub\s+\w+\s*\{",
        r"#!\S*/perl\b",
    ),
    "Shell": (
        r"#!\S*/(?:env\s+)?(?:ba|z|da|k)?sh\b",
        r"\$\s+[a-z][\w.-]*(?:\s|$)",
        r"(?:sudo\s+)?(?:apt(?:-get)?|yum|brew|pip3?|npm|yarn|docker|kubectl|git|curl|wget|chmod|mkdir)\s+-{0,2}\w[^\n]{0,500}$",
        r"(?:if\s+\[\[?\s[^\n]{1,200}\]\]?\s*;\s*then|for\s+\w+\s+in\s[^\n]{1,200};\s*do)\b",
        r"export\s+[A-Z_]+=",
        r"echo\s+[\"'$][^\n;]{0,300}$",
    ),
    "HTML": (
        r"<!(?i:doctype\s+html)",
        r"<(?i:html|head|body|div|span|table|form|script|ul|ol|p|a|h[1-6])(?:\s[^\n>]{0,500})?>",
    ),
    "CSS": (
        r"[.#]?[a-zA-Z][\w.#:, >-]{0,100}\{\s*(?:\n\s*)?[a-z-]{2,40}\s*:\s*[^\n;{}]{1,200};",
        r"@(?:media|import|keyframes|font-face)\b[^\n]{0,100}[{;]",
    ),
    "XML": (r"<\?xml\s", r"<(\w[\w:.-]{0,50})(?:\s+[\w:.-]+=\"[^\n\"]{0,300}\")*>[^\0]{0,500}?</\1>"),
    "YAML": (
        r"---\s*\n\s*[\w-]+:(?:\s|$)",
        r"[\w.-]+:\s*\n(?:[ ]{1,8}[\w.-]+:[^\n]{0,300}|\s{0,8}-\s[^\n]{0,300})(?:\n|$)",
    ),
    "Markdown": (
        r"\[[^\n\]]{1,200}\]\((?:https?://|\.?/|#)[^\n)\s]{1,500}\)",
        r"\|[ :-]*-{3,}[ :|-]*\|\s*$",
        r"#{1,6}\s\S[^\n]{0,300}\n\s*(?:\n|[-*]\s)",
    ),
    "Dockerfile": (
        r"FROM\s+[\w./-]+(?::[\w.-]+)?(?:\s+(?i:as)\s+\w+)?\s*\n(?=[^\0]{0,500}^\s*(?:RUN|CMD|COPY|ADD|ENTRYPOINT|WORKDIR|ENV|EXPOSE)\s)",
    ),
}
_SIGNS: dict[Format, re.Pattern[str]] = {
    name: re.compile(r"^[ \t]*(?:" + "|".join(lines) + ")", re.MULTILINE | re.ASCII) for name, lines in _LINES.items()
}

_FENCE = re.compile(r"^[ \t]*+```++[ \t]*+([\w+#.-]*+)[^\n]*+\n(.*?)(?:^[ \t]*+```++|\Z)", re.DOTALL | re.MULTILINE)
_MOST_LOOKED_AT = 10_000  # characters of a text that are looked at for signs


def found_in(text: str) -> list[str]:
    """The languages of the code in ``text``, each once, in order.

    A fenced block is in the language that its fence names (an unknown name stands for itself). A block without a name
    is in those whose signs it shows, and so is a text without any fence.
    """
    found: dict[str, None] = {}
    blocks: list[tuple[str, str]] = [(match[1].lower(), match[2]) for match in _FENCE.finditer(text)]
    left = _MOST_LOOKED_AT
    for name, block in blocks or [("", text)]:
        if name:
            found[_NAMES.get(name, name)] = None
        elif left > 0:
            found.update(dict.fromkeys(_recognised(block[:left])))
            left -= len(block)
    return list(found)


def _recognised(block: str) -> list[Format]:
    shown: list[Format] = [name for name in FORMATS if name in _SIGNS and _SIGNS[name].search(block)]
    stripped = block.strip()
    if stripped[:1] in ("{", "["):
        try:
            msgspec.json.decode(stripped)
        except (msgspec.DecodeError, RecursionError):
            pass
        else:
            return ["JSON"]
    if "TypeScript" in shown and "JavaScript" in shown:
        shown.remove("JavaScript")  # which TypeScript contains
    return shown
