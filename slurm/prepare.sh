# What every job does first: change to the directory of submission, read the site file, find megacode. Sourced; `root`
# is the repository, or empty if it is not known.
cd "${SLURM_SUBMIT_DIR:-.}"
fail() { echo "Config error: $1" >&2; exit 2; }
for file in slurm/site.env "$root/slurm/site.env"; do
    SITE=${SITE:-$([ -f "$file" ] && echo "$file" || true)}
done
set -a                                            # export the site's variables to megacode and the ranks
if [ -n "$SITE" ]; then source "$SITE"; fi
set +a
if [ -n "$VENV" ]; then
    source "$VENV/bin/activate"
elif ! command -v megacode > /dev/null && [ -x "$root/.venv/bin/megacode" ]; then
    PATH=$root/.venv/bin:$PATH
fi
if ! command -v megacode > /dev/null; then
    fail "megacode is neither on PATH nor in $root/.venv; run make there, or set VENV to a virtual environment"
fi
