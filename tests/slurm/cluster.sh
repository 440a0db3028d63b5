#!/usr/bin/env bash
# A throw-away SLURM on this one machine: emulated nodes n0, n1, ... below a folder. As root, without systemd.
# usage: cluster.sh up FOLDER NODES | cluster.sh down FOLDER        Debian: slurmctld slurmd slurm-client munge
set -euo pipefail
ACTION=$1 LAB=$2 NODES=${3:-2}
PORT=${CLUSTER_PORT:-16817} CPUS=4
export SLURM_CONF="$LAB/slurm.conf"

down() {
    for pid in "$LAB"/slurmd-*.pid "$LAB"/slurmctld.pid; do
        if [ -s "$pid" ]; then kill "$(cat "$pid")" 2>/dev/null || true; fi
    done
}

start_munge() {
    if munge -n </dev/null >/dev/null 2>&1; then return; fi
    install -d -o munge -g munge -m 0755 /run/munge
    install -d -o munge -g munge -m 0700 /var/log/munge /var/lib/munge /etc/munge
    if [ ! -s /etc/munge/munge.key ]; then dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none; fi
    chown munge:munge /etc/munge/munge.key
    chmod 0400 /etc/munge/munge.key
    # Another cluster's start may be a moment ahead: then its daemon answers here too.
    setpriv --reuid=munge --regid=munge --clear-groups /usr/sbin/munged 2>"$LAB/munged.log" || true
    for _ in $(seq 50); do
        if munge -n </dev/null >/dev/null 2>>"$LAB/munged.log"; then return; fi
        sleep 0.2
    done
    echo "munged does not answer; see $LAB/munged.log" >&2
    exit 1
}

write_conf() {
    cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
StateSaveLocation=$LAB/state
SlurmdSpoolDir=$LAB/spool/%n
SlurmctldPidFile=$LAB/slurmctld.pid
SlurmdPidFile=$LAB/slurmd-%n.pid
SlurmctldLogFile=$LAB/slurmctld.log
SlurmdLogFile=$LAB/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,requeue_delay=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=300
MailProg=/bin/true
CONF
    for i in $(seq 0 $((NODES - 1))); do
        echo "NodeName=n$i NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((PORT + 1 + i)) CPUs=$CPUS" \
            "Boards=1 SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=2048 State=UNKNOWN" >> "$SLURM_CONF"
    done
    echo "PartitionName=test Nodes=n[0-$((NODES - 1))] Default=YES MaxTime=INFINITE State=UP" >> "$SLURM_CONF"
    echo "PartitionName=small Nodes=n[0-1] MaxTime=INFINITE State=UP" >> "$SLURM_CONF"
}

if [ "$ACTION" = down ]; then down; exit; fi
mkdir -p "$LAB/state"
start_munge
write_conf
/usr/sbin/slurmctld -c -f "$SLURM_CONF"
for i in $(seq 0 $((NODES - 1))); do
    mkdir -p "$LAB/spool/n$i"
    /usr/sbin/slurmd -N "n$i" -f "$SLURM_CONF"
done
for _ in $(seq 150); do
    if [ "$(sinfo -h -N -t idle -o %N | sort -u | wc -l)" = "$NODES" ]; then exit 0; fi
    sleep 0.2
done
echo "the nodes did not come up; see $LAB/*.log" >&2
exit 1
