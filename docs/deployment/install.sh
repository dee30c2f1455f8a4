#!/bin/sh
# Two OS users, one folder, two services. Run as root, once:  install.sh DOMAIN.toml CORPUS MOCK
# The package is installed in /opt/fl-privacy, a virtual environment that root owns and everybody may read.
set -eu
domain=$1 corpus=$2 mock=$3
home=/srv/fl-privacy here=$(dirname "$0")

getent group fl-front > /dev/null || groupadd --system fl-front
for user in fl-guard fl-desk; do
    id "$user" > /dev/null 2>&1 || useradd --system --user-group --no-create-home --shell /usr/sbin/nologin "$user"
done

umask 077
/opt/fl-privacy/bin/fl-privacy owner init --home "$home" --domain "$domain"
/opt/fl-privacy/bin/fl-privacy corpus add "$corpus" --mock "$mock" --home "$home"
chown root:root "$home"
chmod 0711 "$home"                                # both users pass through; neither lists it
chown -R fl-guard:fl-guard "$home/guard"
chown -R fl-desk:fl-desk "$home/datasite"

install -m 0644 "$here/fl-guard.service" "$here/fl-desk.service" /etc/systemd/system/
systemctl daemon-reload
systemctl enable --now fl-guard.service fl-desk.service
echo "Now put TLS in front of 127.0.0.1:9201 (nginx.conf), and see to a backup of $home/guard."
echo "Commands of the owner:  sudo FL_PRIVACY_GUARD_SOCKET=/run/fl-privacy/front.sock fl-privacy ... --home $home"
