# Finds or installs what the build needs. Sourced by tests/run, bench/run and .ci/run, which set `root`, the top of the
# source tree. In this order, for each package:
#
#   1. a good enough version that CMake finds on the machine, or in build/deps from an earlier run
#   2. as root: the machine's own package archive, where its version is good enough
#   3. on Debian: the package unpacked into build/deps, from the machine's release, its backports or trixie, by a private
#      apt configuration under build/apt; the machine's own package sources stay as they are, and no root is needed
#   4. CMake's FetchContent, pinned by hash, when the tree is configured
#
# shellcheck shell=bash

apt_dir="$root/build/apt"
deps_dir="$root/build/deps"
log_dir="$root/build/log"
export PATH="$PATH:$deps_dir/usr/bin"

say() { printf '%s\n' "$*" >&2; }

stop() {
  say "${0##*/}: $*"
  exit 1
}

# quietly <name> <command>...: the output goes to a log, and is shown only when the command fails.
quietly() {
  local log="$log_dir/$1.log" status
  shift
  mkdir -p "$log_dir"
  if "$@" >"$log" 2>&1; then return 0; else status=$?; fi
  tail -n "${SEQMIX_LOG_LINES:-60}" "$log" >&2
  say "failed with exit code $status: $*"
  say "the whole output: $log"
  return "$status"
}

have() { command -v "$1" >/dev/null 2>&1; }

at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# minimum <package>: the oldest version that serves, as the build has it.
minimum() { sed -n "s/^set(seqmix_version_$1 \(.*\))\$/\1/p" "$root/cmake/versions.cmake"; }

# debian_names <package>: what Debian and its relatives call it; the first name that exists is taken.
debian_names() {
  case $1 in
    Eigen3) echo libeigen3-dev ;;
    xsimd) echo libxsimd-dev ;;
    nlohmann_json) echo nlohmann-json3-dev ;;
    Catch2) echo libcatch2-dev catch2 ;;
    benchmark) echo libbenchmark-dev ;;
    TBB) echo libtbb-dev ;;
    *) echo "$1" ;;
  esac
}

# upstream <version>: a Debian version without epoch and revision.
upstream() {
  local version=${1#*:}
  echo "${version%-*}"
}

is_root() { [ "$(id -u)" = 0 ]; }

update_machine_once() {
  [ -n "${machine_updated:-}" ] && return
  machine_updated=yes
  # A third-party source that is out of reach must not stop us: what is missing shows when it is installed.
  quietly apt-update apt-get update -q || say "going on with the package lists that there are"
}

# candidate <minimum> <name>...: prints the first name that the machine's own archive has in a good enough version.
candidate() {
  local oldest=$1 name version
  shift
  for name in "$@"; do
    version=$(apt-cache policy "$name" 2>/dev/null | sed -n 's/^ *Candidate: //p')
    if [ -n "$version" ] && [ "$version" != "(none)" ] && at_least "$(upstream "$version")" "$oldest"; then
      echo "$name"
      return 0
    fi
  done
  return 1
}

# install_machine <name>...: plainly, as root.
install_machine() {
  say "installing $*"
  DEBIAN_FRONTEND=noninteractive quietly apt-install apt-get install -q -y --no-install-recommends \
    -o DPkg::Lock::Timeout=300 "$@"
}

private() { APT_CONFIG="$apt_dir/apt.conf" "$@"; }

# Writes the private configuration for one mirror and reads that mirror's lists.
prepare_private_from() {
  local mirror=$1 codename=$2 suite keyring=/usr/share/keyrings/debian-archive-keyring.gpg options=
  mkdir -p "$apt_dir/lists/partial" "$apt_dir/cache/archives/partial" "$apt_dir/packages"
  [ -r "$keyring" ] && options="[signed-by=$keyring] "
  for suite in "$codename" "$codename-backports" trixie; do
    echo "deb $options$mirror $suite main"
  done | sort -u >"$apt_dir/sources.list"
  # No hooks and no pins of the machine's: they are about its own lists and packages. The sandbox user could not write
  # into a source tree.
  cat >"$apt_dir/apt.conf" <<EOF
Dir::Etc::sourcelist "$apt_dir/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "-";
Dir::Etc::preferencesparts "-";
Dir::State::lists "$apt_dir/lists";
Dir::Cache "$apt_dir/cache";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
EOF
  say "reading the package lists of $mirror into build/apt"
  private quietly apt-private apt-get update -q --error-on=any
}

prepare_private_once() {
  [ -n "${private_state:-}" ] && { [ "$private_state" = ready ]; return; }
  private_state=failed
  local codename mirror machine_mirror standard=http://deb.debian.org/debian
  have apt-get && have dpkg || return 1
  # shellcheck disable=SC1091
  codename=$(. /etc/os-release 2>/dev/null && [ "${ID:-}" = debian ] && echo "${VERSION_CODENAME:-}")
  [ -n "$codename" ] || return 1
  machine_mirror=$(apt-get indextargets --format '$(REPO_URI)' 2>/dev/null | grep -E '/debian/?$' | head -n 1)
  for mirror in "${machine_mirror:-$standard}" "$standard"; do
    if prepare_private_from "${mirror%/}" "$codename"; then
      private_state=ready
      return 0
    fi
    [ "${mirror%/}" = "$standard" ] && break
  done
  return 1
}

# unpack_private <minimum> <name>...: the first good enough version, the machine's own release first, since libraries
# of a later one may be built against a later libstdc++. Its siblings (the libraries behind a -dev package) come too.
unpack_private() {
  local oldest=$1 name codename suite version sibling
  shift
  prepare_private_once || return 1
  # shellcheck disable=SC1091
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  for name in "$@"; do
    for suite in "$codename" "$codename-backports" trixie; do
      version=$(private apt-cache madison "$name" 2>/dev/null |
        awk -F ' *[|] *' -v suite="$suite/main" '{ split($3, where, " ") } where[2] == suite { print $2; exit }')
      [ -n "$version" ] && at_least "$(upstream "$version")" "$oldest" || continue
      [ -e "$deps_dir/.unpacked/$name=$version" ] && return 0
      mkdir -p "$deps_dir/.unpacked" "$apt_dir/packages"
      # Siblings first: a development package without its libraries would stop CMake, even where it is optional.
      for sibling in $(private apt-cache show "$name=$version" | sed -n 's/^Depends: //p' | tr ',' '\n' |
        sed 's/^ *//; s/[ (:].*//' | grep -E '^lib(tbb|benchmark)'); do
        unpack_private 0 "$sibling" || return 1
      done
      say "unpacking $name $version into build/deps"
      (
        cd "$apt_dir/packages" && rm -f "${name}"_*.deb &&
          private quietly "apt-$name" apt-get download -q "$name=$version" &&
          dpkg -x "${name}"_*.deb "$deps_dir"
      ) || return 1
      : >"$deps_dir/.unpacked/$name=$version"
      return 0
    done
  done
  return 1
}

# provide <what> <minimum> <name>...: steps 2 and 3 of the head of this file.
provide() {
  local what=$1 oldest=$2 name
  shift 2
  if have apt-get && is_root; then
    update_machine_once
    if name=$(candidate "$oldest" "$@") && install_machine "$name"; then return 0; fi
  fi
  unpack_private "$oldest" "$@" && return 0
  say "no package of $what >= $oldest here"
  return 1
}

# The tools that CMake itself needs.
provide_tools() {
  have c++ || have g++ || have clang++ || provide "a C++ compiler" 12 g++ || stop "please install a C++ compiler: GCC 12 or Clang 14, or newer"
  have cmake || provide CMake 3.25 cmake || true
  have cmake || stop "please install CMake 3.25 or newer"
  at_least "$(cmake --version | sed -n 's/^cmake version //p')" 3.25 || stop "this CMake is too old: 3.25 or newer is needed"
  # Ninja rather than make where neither is here: make unpacked under a path with spaces can't call itself.
  have make || have ninja || provide ninja 1.10 ninja-build || stop "please install make or ninja"
  have make || export CMAKE_GENERATOR=Ninja
}

# In a directory of its own, since several of our scripts may run at once.
probe() {
  probe_dir="$root/build/probe/$$"
  rm -rf "$probe_dir"
  quietly "probe-$$" cmake -S "$root/cmake/probe" -B "$probe_dir" -DCMAKE_PREFIX_PATH="$deps_dir/usr" "-DPACKAGES=$1"
}

# provide_packages: every library of tests and benchmarks. What cannot be had is left to CMake, which fetches it or stops;
# oneTBB is optional.
provide_packages() {
  local packages="Eigen3;xsimd;nlohmann_json;Catch2;benchmark;TBB" package
  probe "$packages" || stop "CMake does not work here"
  while read -r package; do
    # shellcheck disable=SC2046
    [ -z "$package" ] || provide "$package" "$(minimum "$package")" $(debian_names "$package") || true
  done <"$probe_dir/missing"
  rm -rf "$probe_dir" "$log_dir/probe-$$.log"
}

# configure <preset> <option of cmake>...
configure() {
  cd "$root" || exit 1
  quietly "configure-$1" cmake --preset "$@" || stop "CMake could not configure build/$1"
}

jobs() { echo "${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc 2>/dev/null || echo 2)}"; }

# build <preset> <target>...: goes on after errors, so that one run shows them all. Of a failed build it shows the errors
# rather than the end of the output, which is seldom where they are.
build() {
  local preset=$1 log="$log_dir/build-$1.log" keep_going=-k
  shift
  mkdir -p "$log_dir"
  grep -q '^CMAKE_GENERATOR:INTERNAL=Ninja' "$root/build/$preset/CMakeCache.txt" && keep_going=-k0
  cmake --build "$root/build/$preset" --parallel "$(jobs)" --target "$@" -- "$keep_going" >"$log" 2>&1 && return 0
  grep -E -A4 'error:|undefined reference|multiple definition|No rule to make' "$log" | head -n "${SEQMIX_LOG_LINES:-60}" >&2
  say "building $* in build/$preset failed; the whole output: $log"
  return 1
}
