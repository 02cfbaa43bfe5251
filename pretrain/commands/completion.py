"""`pretrain completion`: a script that has the shell complete commands, options, keys and their values.

The script calls `pretrain completion SHELL LINE` for each completion, LINE being the command line up to the cursor.
"""

import argparse
import sys

from pretrain.commands.arguments import CommandParser

SHELLS = ("bash", "zsh", "fish")

HELP = """
Prints a script that completes commands, options, keys of the configuration, the files of its groups (also those of
--config-dir) and the values of keys that have a fixed set of them.

examples:
  pretrain completion bash
  echo 'eval "$(pretrain completion bash)"' >> ~/.bashrc
  echo 'eval "$(pretrain completion zsh)"' >> ~/.zshrc    # after compinit
  pretrain completion fish > ~/.config/fish/completions/pretrain.fish
"""

BASH = r"""
_pretrain() {
  local line word whole=${COMP_LINE:0:COMP_POINT}
  COMPREPLY=()
  while IFS= read -r line; do
    word=${line%%$'\t'*}
    COMPREPLY+=("$word")
    case $word in *[=.]) compopt -o nospace ;; esac
  done < <("${COMP_WORDS[0]}" completion bash "$whole" 2>/dev/null)
}
complete -o default -F _pretrain pretrain
"""

ZSH = r"""
_pretrain() {
  local line word
  local -a words_done words_open shown_done shown_open
  for line in "${(@f)$("${words[1]}" completion zsh "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}"; do
    word=${line%%$'\t'*}
    case $word in
      '') ;;
      *[=.]) words_open+=("$word"); shown_open+=("${line/$'\t'/  -- }") ;;
      *) words_done+=("$word"); shown_done+=("${line/$'\t'/  -- }") ;;
    esac
  done
  (( $#words_done )) && compadd -Q -l -d shown_done -a words_done
  (( $#words_open )) && compadd -Q -l -S '' -d shown_open -a words_open
  if (( $#words_done + $#words_open == 0 )); then
    compset -P '*='
    _files
  fi
}
compdef _pretrain pretrain
"""

FISH = r"""
complete -c pretrain -a '(pretrain completion fish (commandline -cp) 2>/dev/null)'
"""


def add_options(parser: CommandParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell that is to complete")
    parser.add_argument("line", nargs="?", help=argparse.SUPPRESS)


def run(given: argparse.Namespace) -> int:
    if given.line is None:
        sys.stdout.write({"bash": BASH, "zsh": ZSH, "fish": FISH}[given.shell].lstrip("\n"))
        return 0
    from pretrain.commands.candidates import candidates, split_line

    words = split_line(given.line)
    for each in candidates(words):
        text = each.text
        if given.shell == "bash":
            # Bash splits words at = and : too, and replaces only the last part.
            text = text[max(words[-1].rfind(mark) for mark in "=:") + 1 :]
        sys.stdout.write(f"{text}\t{each.meaning}\n" if each.meaning else f"{text}\n")
    return 0
