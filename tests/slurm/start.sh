#!/usr/bin/env bash
# Install and start a SLURM of one node on this machine, with two GPUs that are none, for the tests in this directory.
# Needs root on Debian or Ubuntu; ends with status 1 and says why where that cannot be. Started twice, it changes nothing.
set -euo pipefail

running() { ps -C "$1" -o stat= 2>/dev/null | grep -q '^[^Z]'; }
no() { echo "tests/slurm: no SLURM here: $*" >&2; exit 1; }

config=/etc/slurm
made="# Made by tests/slurm/start.sh"

if timeout 5 sinfo -h -o %T 2>/dev/null | grep -q -x -E 'idle|mixed|allocated'; then
    echo "tests/slurm: SLURM answers"
    exit 0
fi
[ "$(id -u)" = 0 ] || no "it takes root to install one"
[ ! -e $config/slurm.conf ] || grep -q "^$made" $config/slurm.conf || no "$config/slurm.conf is somebody's own"
if ! command -v slurmctld slurmd munged >/dev/null; then
    command -v apt-get >/dev/null || no "there is no apt-get"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >/dev/null 2>&1 \
        || no "apt-get cannot install slurm-wlm and munge"
fi

host=$(hostname -s)
cores=$(nproc)
memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) * 9 / 10240)) # MB
state=/var/lib/tedm-slurm
mkdir -p $config $state/{controller,node} /run/munge
# A job may use no more memory than it asked for: looked at each second.
cat >$config/slurm.conf <<CONF
$made
ClusterName=tedm
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
StateSaveLocation=$state/controller
SlurmdSpoolDir=$state/node
SlurmctldLogFile=$state/controller.log
SlurmdLogFile=$state/node.log
SlurmctldPidFile=$state/controller.pid
SlurmdPidFile=$state/node.pid
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill,UsePss
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,sched_interval=2,bf_interval=2
SwitchType=switch/none
ReturnToService=2
MinJobAge=3600
KillWait=5
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores Boards=1 SocketsPerBoard=1 CoresPerSocket=$cores ThreadsPerCore=1 RealMemory=$memory Gres=gpu:2
PartitionName=main Nodes=$host Default=YES State=UP
CONF
printf 'CgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=no\n' >$config/cgroup.conf
echo "NodeName=$host Name=gpu File=/dev/null,/dev/zero AutoDetect=off" >$config/gres.conf

[ -s /etc/munge/munge.key ] || dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none
chown -R munge: /etc/munge /run/munge /var/lib/munge /var/log/munge
chmod 400 /etc/munge/munge.key
chmod 755 /run/munge
running munged || runuser -u munge -- munged || no "munged does not start"
running slurmctld || slurmctld || no "slurmctld does not start ($state/controller.log)"
running slurmd || slurmd || no "slurmd does not start ($state/node.log)"
for _ in $(seq 40); do
    if timeout 5 sinfo -h -o %T 2>/dev/null | grep -q -x idle; then
        echo "tests/slurm: SLURM of one node started: $cores cores, $memory MB, two GPUs that are none"
        exit 0
    fi
    sleep 0.5
done
no "its node does not become idle ($state/node.log)"
