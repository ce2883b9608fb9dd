"""How scripts are taken apart into the commands that rules are held against."""

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_server.calling.programs import ONE, UNKNOWN
from agent_server.calling.shell import MAX_SCRIPT, commands

RM = "rm -rf x"


@pytest.mark.parametrize(
    "script",
    [
        "rm -rf x",
        "git status; rm -rf x",
        "git status;rm -rf x",
        "git status && rm -rf x",
        "git status || rm -rf x",
        "git status | rm -rf x",
        "git status |& rm -rf x",
        "git status & rm -rf x",
        "git status\nrm -rf x",
        "git status # nothing\nrm -rf x",
        "# a comment \\\nrm -rf x",
        "echo \\\\\nrm -rf x",
        "echo a#b; rm -rf x",
        "true &&\\\n rm -rf x",
        "  rm   -rf\tx  ",
        '"rm" -rf x',
        "'r'm -rf x",
        "r\\m -rf x",
        "r\\\nm -rf x",
        "FOO=1 rm -rf x",
        "FOO=1 BAR='a b' rm -rf x",
        "a=(1 2) ; rm -rf x",
        "> out rm -rf x",
        "2>&1 rm -rf x",
        "{fd}>out rm -rf x",
        "rm -rf x > out 2>&1 < in",
        "rm -rf x &> out",
        "(rm -rf x)",
        "( (rm -rf x) )",
        "{ rm -rf x; }",
        "! rm -rf x",
        "time -p rm -rf x",
        "time -- rm -rf x",
        "time -\\\np -- rm -rf x",
        "if true; then rm -rf x; fi",
        "if rm -rf x; then :; fi",
        "i\\\nf rm -rf x; then :; fi",
        "while rm -rf x; do :; done",
        "for a in b; do rm -rf x; done",
        "for a in b # '\ndo rm -rf x; done # '",
        "f() { rm -rf x; }; f",
        "function f { rm -rf x; }",
        "[[ -f a && b ]] && rm -rf x",
        "[[ $(rm -rf x) ]]",
        "((i++)); rm -rf x",
        "echo $(rm -rf x)",
        "echo $( $(rm -rf x) )",
        "echo `rm -rf x`",
        "echo `echo \\`rm -rf x\\``",
        'echo "a $(rm -rf x) b"',
        'echo "a `rm -rf x` b"',
        'echo "$(echo "$(rm -rf x)")"',
        "echo ${a:-$(rm -rf x)}",
        "echo $((1 + $(rm -rf x)))",
        "A=$(rm -rf x)",
        "A=$(rm -rf x) ls",
        "a=($(rm -rf x))",
        "cat <(rm -rf x)",
        "tee >(rm -rf x)",
        "ls > $(rm -rf x)",
        "cat <<EOF\n$(rm -rf x)\nEOF",
        "cat <<EOF\n`rm -rf x`\nEOF",
        "cat <<'EOF'\nit's\nEOF\nrm -rf x",
        "cat <<-EOF\n\tit's\n\tEOF\nrm -rf x",
        "cat <<A <<B\nit's\nA\nit's\nB\nrm -rf x",
        "cat <<< 'a'; rm -rf x",
        "bash -c 'rm -rf x'",
        'bash -c "rm -rf x"',
        "bash -ec 'rm -rf x'",
        "bash -o pipefail -c 'ls; rm -rf x'",
        "sh -c 'bash -c \"rm -rf x\"'",
        "/bin/sh -c 'rm -rf x' name",
        "eval 'rm -rf x'",
        "eval rm -rf x",
        "trap 'rm -rf x' EXIT",
        "sudo rm -rf x",
        "sudo -u bob -E rm -rf x",
        "sudo A=1 rm -rf x",
        "env A=1 rm -rf x",
        "env -i -u B rm -rf x",
        "/usr/bin/env rm -rf x",
        "nohup rm -rf x &",
        "setsid nice -n 5 rm -rf x",
        "timeout -k 1 5 rm -rf x",
        "stdbuf -oL rm -rf x",
        "exec rm -rf x",
        "command rm -rf x",
        "builtin eval rm -rf x",
        "busybox rm -rf x",
        "find . -name a -exec rm -rf x \\;",
        "find . -execdir rm -rf x +",
    ],
)
def test_a_command_is_found_wherever_it_hides(script: str) -> None:
    assert RM in commands(script)


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("ls | xargs rm", ["ls", "xargs rm", f"rm {UNKNOWN}"]),
        ("xargs -0 -n 1 rm -f", ["xargs -0 -n 1 rm -f", f"rm -f {UNKNOWN}"]),
        ("find . -exec rm {} \\;", ["find . -exec rm {} ;", f"rm {UNKNOWN}"]),
        ('git commit -m "$MSG"', [f"git commit -m {UNKNOWN}"]),
        ("echo a{b,c}", [f"echo {UNKNOWN}"]),
        ("echo {} {a}", ["echo {} {a}"]),
        ("cat *.py a?b '?'", [f"cat {UNKNOWN}.py a{ONE}b ?"]),
        ("cat .[e]nv a[b]c[d]*.x[", [f"cat .{UNKNOWN}nv a{UNKNOWN}{UNKNOWN}.x["]),
        ("cat [ ] a[ b] [']'x", [f"cat [ ] a[ b] {UNKNOWN}x"]),
        ("cat '*.py' \\? \"[a]\"", ["cat *.py ? [a]"]),
        ("find . -name *.py", [f"find . -name {UNKNOWN}.py"]),
        ("xargs -I{} sh -c {}", ["xargs -I{} sh -c {}", f"sh -c {UNKNOWN} {UNKNOWN}", UNKNOWN]),
        ("xargs -I % cp a %b", ["xargs -I % cp a %b", f"cp a {UNKNOWN} {UNKNOWN}"]),
        ("hash -r", ["hash -r"]),
        ("echo '$(rm x)' \\$(", [UNKNOWN]),
        ("echo '$(rm x)'", ["echo $(rm x)"]),
        ("git commit -m 'a; rm x'", ["git commit -m a; rm x"]),
        ("cat <<'EOF'\n$(rm x)\nEOF", ["cat"]),
        ("echo rm x # rm y", ["echo rm x"]),
        ("rm '' x", ["rm '' x"]),
        ("command -v rm", ["command -v rm"]),
        ("bash build.sh -c x", ["bash build.sh -c x"]),
        ("for f in *.py; do cat $f; done", [f"cat {UNKNOWN}"]),
        ("[ -f a ] && test -f b", ["[ -f a ]", "test -f b"]),
        ("A=1", ["A=1"]),
        ("> file", ["> file"]),
        ("", [""]),
    ],
)
def test_what_is_said_of_a_command(script: str, found: list[str]) -> None:
    assert commands(script) == found


@pytest.mark.parametrize(
    "script",
    [
        "$CMD x",
        "X=rm; $X y",
        "${X} y",
        "$(which rm) x",
        "`echo rm` x",
        "r$A x",
        "$'\\x72m' x",
        "/bin/r? x",
        "/bin/[r]m x",
        "{rm,-rf,x}",
        "bash",
        "echo 'rm x' | sh",
        "bash <<< 'rm x'",
        "bash <<EOF\nrm x\nEOF",
        "bash -s",
        "bash <(echo rm x)",
        ". <(echo rm x)",
        "source /dev/stdin",
        'bash -c "$X"',
        'sh -c "rm $x"',
        'eval "$X"',
        "env -S 'rm x'",
        "xargs -I% % x",
        "xargs --replace=R sh -c R",
        "hash -p /bin/rm ls; ls x",
        "setarch x86_64 rm x",
        "/lib64/ld-linux-x86-64.so.2 /bin/rm x",
        "env -iS 'rm x'",
        "PATH=. git status",
        "LD_PRELOAD=./a.so git status",
        "GIT_PAGER='rm x' git log",
        "env PATH=. git status",
        "watch rm x",
        "parallel rm ::: x",
        "test -v 'a[$(rm x)]'",
        "[[ -v 'a[$(rm x)]' ]]",
        "mapfile -C 'rm x' a",
        "case a in a) rm x;; esac",
        "echo 'never ended",
        'echo "never ended',
        "echo $(never ended",
        "echo ) x",
        "cat <<EOF\nnever ended",
        "cat <<EOF\nfoo \\\nEOF\nrm x\nEOF\n",
        "echo $((rm x); echo)",
        "echo $\\\n(rm x)",
        "cat <\\\n(rm x)",
        "echo ${a@P}",
        "echo a\0b",
        "sudo " * 100 + "rm x",
        "$(" * 100,
        "true;" * 10_000,
        "a" * (MAX_SCRIPT + 1),
    ],
    ids=lambda script: script[:20].replace("\0", "NUL"),
)
def test_what_cannot_be_known_is_unknown(script: str) -> None:
    assert UNKNOWN in commands(script)


PIECES = st.sampled_from(
    [
        "echo ",
        "'",
        '"',
        "\\",
        "\n",
        ";",
        " ",
        "$(",
        ")",
        "`",
        "#",
        "<<E\n",
        "E\n",
        "a",
        "&&",
        "|",
        "{ ",
        "}",
        "(",
        "${a:-",
        "$((",
        "))",
        "\\\n",
        "if ",
        "then ",
        "fi",
    ]
)


@given(st.lists(PIECES, max_size=12).map("".join))
@settings(max_examples=300, deadline=None)
def test_no_script_is_split_in_such_a_way_that_a_command_gets_lost(before: str) -> None:
    """Bash itself is asked whether a probe after any text runs; where it does, it is found, or the script is unknown."""
    script = f"{before} probe_ran it"
    found = commands(script)
    if UNKNOWN in found or any("probe_ran it" in one and one.startswith("probe_ran") for one in found):
        return
    defined = 'probe_ran() { command echo PROBE-RAN >&9; }; export -f probe_ran; exec bash -c "$1" 9>&1 >/dev/null 2>&1'
    ran = subprocess.run(["bash", "-c", defined, "bash", script], capture_output=True, stdin=subprocess.DEVNULL, timeout=10, check=False)
    assert b"PROBE-RAN" not in ran.stdout, (script, found)
