defmodule PgliteEx.Launchers do
  @moduledoc false
  # Shell scripts named `pg_dump` and `psql`, for programs that call these: `mix ecto.dump` and
  # `mix ecto.load`. They run `pglite-port`, so that no PostgreSQL has to be installed.

  alias PgliteEx.Executable

  # From priv/bin the program is one directory up; a checkout names it with PGLITE_PORT.
  @find_program """
  here=$(dirname -- "$(readlink -f -- "$0")")
  program=${PGLITE_PORT:-$here/../pglite-port}
  if [ -z "${PGLITE_DIR:-}" ] && [ -f "$here/../pglite/pglite.wasm" ]; then
    export PGLITE_DIR="$here/../pglite"
  fi
  [ -n "${PGLITE_PORT:-}" ] || [ -x "$program" ] || program=pglite-port
  command -v "$program" > /dev/null || {
    echo "$(basename -- "$0") of pglite-port: there is no program $program: run mix pglite_ex.install" >&2
    exit 2
  }
  """

  @pg_dump """
  #!/bin/sh
  # PostgreSQL's pg_dump, which pglite-port runs. `mix pglite_ex.install` has put this file here.
  set -eu
  #{@find_program}exec "$program" dump -- "$@"
  """

  @psql """
  #!/bin/sh
  # Runs an SQL file as psql does, with pglite-port. `mix pglite_ex.install` has put this file here.
  set -eu
  fail() {
    echo "psql of pglite-port: $1" >&2
    exit 2
  }
  #{@find_program}file=
  database=
  command=
  on_error=continue
  left=$#
  # Options are taken from the front; those that pglite-port knows go to the end.
  while [ "$left" -gt 0 ]; do
    argument=$1
    value=
    shift
    left=$((left - 1))
    case $argument in
      -c | --command | -f | --file | -v | --set | --variable | -h | --host | -p | --port | -U | --username | -d | --dbname)
        [ "$left" -gt 0 ] || fail "option $argument needs a value"
        value=$1
        shift
        left=$((left - 1))
        ;;
      --file=* | --command=* | --set=* | --variable=* | --host=* | --port=* | --username=* | --dbname=*)
        value=${argument#*=}
        argument=${argument%%=*}
        ;;
      -[AtqXwW]?*)
        # Several letters, of which the last may have a value.
        rest=${argument#-?}
        set -- "-$rest" "$@"
        left=$((left + 1))
        argument=${argument%"$rest"}
        ;;
      -[cfvhpUd]?*)
        value=${argument#-?}
        argument=${argument%"$value"}
        ;;
    esac
    case $argument in
      -f | --file)
        [ -z "$file" ] || fail "one --file can be given"
        file=$value
        ;;
      -c | --command)
        [ -z "$command" ] || fail "one --command can be given, with several statements in it"
        command=$value
        ;;
      -v | --set | --variable)
        case $value in
          ON_ERROR_STOP=1 | ON_ERROR_STOP=on | ON_ERROR_STOP=true | ON_ERROR_STOP) on_error=stop ;;
          ON_ERROR_STOP=*) on_error=continue ;;
          *) fail "the variable $value is not supported" ;;
        esac
        ;;
      -h | --host) set -- "$@" "--host=$value" ;;
      -p | --port) set -- "$@" "--port=$value" ;;
      -U | --username) set -- "$@" "--username=$value" ;;
      -d | --dbname) set -- "$@" "--dbname=$value" ;;
      # Rows are unaligned, without a header, anyway.
      -X | --no-psqlrc | -A | --no-align | -t | --tuples-only) ;;
      -*) set -- "$@" "$argument" ;;
      *)
        # The first is the database, the second the user.
        if [ -z "$database" ]; then
          database=$argument
          set -- "$@" "--dbname=$argument"
        else
          set -- "$@" "--username=$argument"
        fi
        ;;
    esac
  done
  if [ -n "$command" ] && [ -n "$file" ]; then
    fail "--command and --file cannot be given both: run one after the other"
  fi
  status=0
  if [ -n "$command" ]; then
    "$program" run --rows "$@" -- - <<SQL || status=$?
  $command
  SQL
    # psql ends with 1 when a --command fails, and with 3 when a --file does and ON_ERROR_STOP is set.
    [ "$status" -ne 3 ] || status=1
  elif [ -n "$file" ]; then
    "$program" run "$@" "--on-error=$on_error" -- "$file" || status=$?
    [ "$status" -ne 3 ] || [ "$on_error" = stop ] || status=0
  else
    fail "it runs --file FILE or --command SQL; PostgreSQL's own psql does the rest"
  fi
  exit "$status"
  """

  @scripts [{"pg_dump", @pg_dump}, {"psql", @psql}]

  @doc "Puts the scripts into `directory`, which is made."
  @spec install!(Path.t()) :: :ok
  def install!(directory) do
    File.mkdir_p!(directory)

    for {name, script} <- @scripts do
      path = Path.join(directory, name)
      beside = "#{path}.#{System.pid()}.#{System.unique_integer([:positive])}"
      File.write!(beside, script)
      File.chmod!(beside, 0o755)
      # Renamed, so that a task that is killed leaves no half script.
      File.rename!(beside, path)
    end

    :ok
  end

  @doc "Lets this VM find them before others, if `mix pglite_ex.install` has put them there."
  @spec add_to_path() :: :ok
  def add_to_path do
    path = System.get_env("PATH", "")

    if File.dir?(directory()) and directory() not in String.split(path, ":"),
      do: System.put_env("PATH", "#{directory()}:#{path}")

    :ok
  end

  @doc "Where `mix pglite_ex.install` puts them."
  @spec directory() :: Path.t()
  def directory, do: Path.join(Path.dirname(Executable.installed_path()), "bin")
end
