#!/usr/bin/env bash
# TiC-DataComp on one machine or several; the same command on each of them:
#
#   bash experiments/tic_webscale.sh data/simulated
#   NODES=4 GPUS=8 HEAD=node0 RUN=large bash experiments/tic_webscale.sh /data/tic \
#       --preset datacomp-large --workers 4 --grad-checkpointing --out /shared/runs/large
#   srun --nodes 4 --ntasks-per-node 1 env NODES=4 GPUS=8 HEAD=... bash experiments/...
#
# NODES     machines (1)                      GPUS      processes on each (1)
# HEAD      name of one of them (localhost)   PORT      free there (29500)
# RUN       name of the run (tic)             RESTARTS  after a failure (3)
# PYTHON    interpreter (python)
#
# The data and --out must be the same folders on all machines. After a failure all
# processes start again and go on from the last checkpoint, as does the same command.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
nodes="${NODES:-1}"
if [ "$nodes" -gt 1 ] && [ -z "${HEAD:-}" ]; then
    echo "NODES=$nodes needs HEAD=, the name of one of the machines" >&2
    exit 2
fi
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "$nodes" --nproc-per-node "${GPUS:-1}" --max-restarts "${RESTARTS:-3}" \
    --rdzv-backend c10d --rdzv-id "${RUN:-tic}" \
    --rdzv-endpoint "${HEAD:-localhost}:${PORT:-29500}" \
    "$here/tic_webscale.py" "$@"
