#!/usr/bin/env bash
# Run a script of Snakemake as a Kubernetes job, and say how it is.
#
#   jobs.sh submit CORES MEGABYTES MINUTES GPUS SCRIPT     prints the job's name
#   jobs.sh status NAME                                    prints running, success or failed
set -euo pipefail

# EDIT: an image with this project's environment, in which Snakemake runs, too; the claim of the volume on which project, data
# and results lie; where it is mounted, here and in the jobs; the name of GPUs.
image=${TEDM_IMAGE:-registry.example.org/tedm:latest}
claim=${TEDM_CLAIM:-tedm}
mount=${TEDM_MOUNT:-/work}
gpu=nvidia.com/gpu

submit() {
    local cores=$1 megabytes=$2 minutes=$3 gpus=$4 script=$5 gpu_limit=
    [ "$gpus" = 0 ] || gpu_limit=", $gpu: $gpus"
    # Limits are what is asked for: above its memory a job ends, and is submitted again with more.
    kubectl create -o name -f - <<JOB | sed 's,.*/,,'
apiVersion: batch/v1
kind: Job
metadata: {generateName: tedm-, labels: {app: tedm}}
spec:
  backoffLimit: 0
  ttlSecondsAfterFinished: 86400
  template:
    spec:
      activeDeadlineSeconds: $((minutes * 60)) # of the pod: waiting for a node doesn't count
      restartPolicy: Never
      containers:
        - name: job
          image: $image
          workingDir: "$PWD"
          command: [bash, "$script"]
          resources:
            requests: {cpu: $cores, memory: ${megabytes}M}
            limits: {cpu: $cores, memory: ${megabytes}M$gpu_limit}
          volumeMounts: [{name: work, mountPath: "$mount"}]
      volumes: [{name: work, persistentVolumeClaim: {claimName: $claim}}]
JOB
}

status() {
    local conditions
    # A job that is gone was deleted by somebody.
    conditions=$(kubectl get job "$1" -o 'jsonpath={.status.conditions[?(@.status=="True")].type}' 2>/dev/null) \
        || { echo failed; return; }
    case " $conditions " in
        *" Failed "*) echo failed ;;
        *" Complete "*) echo success ;;
        *) echo running ;;
    esac
}

action=$1
shift
"$action" "$@"
