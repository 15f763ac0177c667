#!/bin/sh
# First deployment on a host: user, directories, permissions, and on request the cron entry. Says what it does; running
# it again changes nothing that is right already.
set -eu

usage() {
  cat <<'USAGE'
usage: init.sh [--user NAME] [--cron] [--help]
  --user NAME  the service's user; created as a system user when it does not exist. Needs root.
               Without it the directories belong to whoever runs this
  --cron       installs the daily cron entry `mctl clear_failure_queue --older-than 7d`: into /etc/cron.d as root,
               for --user, else for the owner of the directories; else into the caller's crontab
USAGE
}
say() { printf '%s\n' "$*"; }
die() { printf 'init: %s\n' "$*" >&2; exit 1; }

home=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd -P)
user=
cron=no
while [ $# -gt 0 ]; do
  case $1 in
    --user)
      [ $# -gt 1 ] || { usage >&2; exit 64; }
      user=$2
      shift
      ;;
    --cron) cron=yes ;;
    -h | --help) usage; exit ;;
    *) usage >&2; exit 64 ;;
  esac
  shift
done
root=no
[ "$(id -u)" -ne 0 ] || root=yes

if [ -n "$user" ]; then
  case $user in
    *[!a-z0-9_-]* | [!a-z_]*) die "cannot take \`$user\` as a user name: lower-case letters, digits, _ and - only" ;;
  esac
  [ "$root" = yes ] || die "cannot give the directories to $user: run this as root"
  if id "$user" >/dev/null 2>&1; then
    say "user $user is there"
  else
    useradd --system --user-group --no-create-home --home-dir "$home" --shell /usr/sbin/nologin "$user"
    say "user $user created"
  fi
fi

for dir in tmp logs data; do
  # Whose link that is, and what it leads to, is not for us to decide.
  if [ -L "$home/$dir" ]; then
    say "$home/$dir is a link: left as it is; give what it leads to to the service's user"
    continue
  fi
  mkdir -p "$home/$dir"
  # The service's group reaches the events (a collector) and the socket (a monitor), others nothing.
  chmod 750 "$home/$dir"
  [ -z "$user" ] || chown -R "$user:" "$home/$dir"
  say "$home/$dir is there, mode 750${user:+, owner $user}"
done
# The configuration may hold secrets: the service reads it, the rest of the world does not.
for file in "$home"/config/*; do
  [ -f "$file" ] || continue
  [ ! -L "$file" ] || continue
  chmod 640 "$file"
  [ -z "$user" ] || chgrp "$(id -gn "$user")" "$file"
done
say "$home/config is readable by its owner and group alone"

if [ "$cron" = yes ]; then
  case $home in
    *[!A-Za-z0-9/._-]*) die "cannot install the cron entry: $home has characters that cron or its shell would read otherwise" ;;
  esac
  job="$home/mctl clear_failure_queue --older-than 7d >/dev/null"
  if [ "$root" = yes ]; then
    # A job of root's on a home of another user would run what that user puts there.
    [ -n "$user" ] || user=$(stat -Lc %U "$home")
    [ "$user" != root ] || user=$(stat -Lc %U "$home/tmp")
    [ "$user" != UNKNOWN ] || die "cannot install the cron entry: the owner of $home has no name; see --user"
    entry=/etc/cron.d/mtga$(printf '%s' "$home" | tr -c 'A-Za-z0-9' _)
    mkdir -p /etc/cron.d
    {
      say "# The failure queue of mtga in $home: what failed a week ago goes."
      say "17 4 * * * $user $job"
    } >"$entry.new"
    chmod 644 "$entry.new"
    mv "$entry.new" "$entry"
    say "cron entry is in $entry"
  else
    command -v crontab >/dev/null || die "cannot install the cron entry: crontab is missing"
    { crontab -l 2>/dev/null | grep -vF "$job" || :; say "17 4 * * * $job"; } | crontab -
    say "cron entry is in the crontab of $(id -un)"
  fi
  command -v cron >/dev/null || command -v crond >/dev/null || say "note: no cron runs entries here yet: install one"
fi
