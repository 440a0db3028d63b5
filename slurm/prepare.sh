# What every job does first: go where it was submitted, read the site's file, find megacode. Sourced; `root` is the
# repository, or empty where it is not known.
cd "${SLURM_SUBMIT_DIR:-.}"
fail() { echo "Config error: $1" >&2; exit 2; }
for file in slurm/site.env "$root/slurm/site.env"; do
    SITE=${SITE:-$([ -f "$file" ] && echo "$file" || true)}
done
set -a                                            # what the site's file sets is for megacode and the ranks too
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
