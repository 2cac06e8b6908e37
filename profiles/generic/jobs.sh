#!/usr/bin/env bash
# Submit a job to LSF, SGE or PBS and say how it is: what Snakemake asks of a scheduler that it has no plugin for.
#
#   jobs.sh SCHEDULER submit CORES MEGABYTES MINUTES GPUS SCRIPT     prints the job's id
#   jobs.sh SCHEDULER status ID                                      prints running, success or failed
#
# EDIT the submit line of your scheduler where queues, accounts and GPUs have other names.
set -euo pipefail

scheduler=$1 action=$2
shift 2

hours() { printf '%02d:%02d:00' $(($1 / 60)) $(($1 % 60)); }

submit() {
    local cores=$1 megabytes=$2 minutes=$3 gpus=$4 script=$5
    local gpu=()
    mkdir -p .snakemake/cluster_logs
    case $scheduler in
        lsf) # memory in MB, as LSF_UNIT_FOR_LIMITS=MB has it
            [ "$gpus" = 0 ] || gpu=(-gpu "num=$gpus")
            bsub -n "$cores" -R "span[hosts=1] rusage[mem=$megabytes]" -M "$megabytes" -W "$minutes" \
                "${gpu[@]}" -o .snakemake/cluster_logs/%J.log "$script" | sed -n 's/^Job <\([0-9]*\)>.*/\1/p' ;;
        sge) # memory is counted for each core, and GPUs, too, unless your site made them a JOB consumable: EDIT then;
            # the environment for cores on one machine is called smp at most sites
            [ "$gpus" = 0 ] || gpu=(-l "gpu=$gpus")
            qsub -terse -V -cwd -j y -o .snakemake/cluster_logs/ -pe smp "$cores" \
                -l "h_vmem=$((megabytes / cores))M,h_rt=$((minutes * 60))" "${gpu[@]}" "$script" ;;
        pbs)
            [ "$gpus" = 0 ] || gpu=(":ngpus=$gpus")
            qsub -V -j oe -o .snakemake/cluster_logs/ \
                -l "select=1:ncpus=$cores:mem=${megabytes}mb${gpu[*]}" -l "walltime=$(hours "$minutes")" "$script" ;;
        slurm) # where the plugin cannot be had: profiles/slurm knows more
            [ "$gpus" = 0 ] || gpu=("--gpus=$gpus")
            sbatch --parsable --ntasks=1 --cpus-per-task="$cores" --mem="$megabytes" --time="$minutes" \
                "${gpu[@]}" --output=.snakemake/cluster_logs/%j.log "$script" ;;
        *) echo "jobs.sh: unknown scheduler $scheduler (lsf, sge, pbs, slurm)" >&2; exit 1 ;;
    esac
}

status() {
    local id=$1 state code
    case $scheduler in
        lsf)
            case $(bjobs -noheader -o stat "$id" 2>/dev/null) in
                DONE) echo success ;;
                PEND | RUN | PROV | PSUSP | USUSP | SSUSP | WAIT | UNKWN) echo running ;;
                *) echo failed ;;
            esac ;;
        sge) # a job that ended is known to qacct only, and not at once
            if qstat -j "$id" >/dev/null 2>&1; then
                echo running
            else
                code=$(qacct -j "$id" 2>/dev/null | awk '$1 == "failed" || $1 == "exit_status" {print $2}' | sort -u) || true
                case $code in 0) echo success ;; "") echo running ;; *) echo failed ;; esac
            fi ;;
        pbs)
            state=$(qstat -xf "$id" 2>/dev/null | awk '$1 == "job_state" {print $3}') || true
            code=$(qstat -xf "$id" 2>/dev/null | awk 'tolower($1) == "exit_status" {print $3}') || true
            case $state in
                F | C) [ "$code" = 0 ] && echo success || echo failed ;;
                "") echo failed ;;
                *) echo running ;;
            esac ;;
        slurm)
            case $(squeue -h -t all -o %T -j "$id" 2>/dev/null || sacct -X -n -o State%20 -j "$id") in
                COMPLETED*) echo success ;;
                PENDING | RUNNING | CONFIGURING | COMPLETING | SUSPENDED | REQUEUED | RESIZING | STAGE_OUT) echo running ;;
                *) echo failed ;;
            esac ;;
    esac
}

"$action" "$@"
