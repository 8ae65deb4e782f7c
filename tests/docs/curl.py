"""As much of curl as the pages use, so that they can be followed where there is none. Strict: no other option works."""

import argparse
import sys
import urllib.error
import urllib.request


def main() -> int:
    parser = argparse.ArgumentParser(prog="curl", allow_abbrev=False)
    parser.add_argument("url")
    parser.add_argument("-X", "--request")
    parser.add_argument("-H", "--header", action="append", default=[])
    parser.add_argument("-d", "--data")
    parser.add_argument("-i", "--include", action="store_true")
    parser.add_argument("-f", "--fail", action="store_true")
    parser.add_argument("-s", "--silent", action="store_true")
    parser.add_argument("-S", "--show-error", action="store_true")
    parser.add_argument("-o", "--output", choices=["/dev/null"])
    arguments = parser.parse_args()
    headers = {name.strip(): value.strip() for name, _, value in (one.partition(":") for one in arguments.header)}
    body = arguments.data.encode() if arguments.data is not None else None
    request = urllib.request.Request(arguments.url, data=body, headers=headers, method=arguments.request)
    try:
        answer = urllib.request.urlopen(request, timeout=20)
    except urllib.error.HTTPError as error:
        answer = error
    except OSError as error:
        print(f"curl: (7) {error}", file=sys.stderr)
        return 7
    if arguments.fail and answer.status >= 400:
        print(f"curl: (22) The requested URL returned error: {answer.status}", file=sys.stderr)
        return 22
    if arguments.output is not None:
        return 0
    if arguments.include:
        print(f"HTTP/1.1 {answer.status}")
        for name, value in answer.headers.items():
            print(f"{name.lower()}: {value}")
        print()
    sys.stdout.write(answer.read().decode("utf-8", errors="replace"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
