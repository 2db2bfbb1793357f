defmodule PgliteEx.Clock do
  @moduledoc """
  The clock of a branch or of an isolated cluster, which a test sets.

      alias PgliteEx.Clock

      :ok = Clock.freeze(gate, ~U[2040-02-29 12:00:00Z])
      Postgrex.query!(conn, "select now(), age(timestamp '2000-02-29')", [])
      #=> 2040-02-29 12:00:00Z, 40 years

      :ok = Clock.travel_by(gate, 30, :day)
      :ok = Clock.back(gate)

  `now()` and all other functions of the time follow it: `clock_timestamp()`, `CURRENT_DATE`, `age()`,
  `timeofday()`, `uuidv7()`, also in column defaults and triggers, and the log. Nothing has to be changed in the
  schema.

  A clock is set between statements, for all sessions of the cluster; statements that a client sends after
  the function has returned see the new time. In a transaction that is open, `now()` stays what it was, as
  in any PostgreSQL. The clock stays set when the cluster is reset to its template
  (`PgliteEx.Template.reset/1`), and is gone with the cluster. Clocks of other clusters are not affected; a branch
  begins with real time, whatever the clock of its origin shows.

  What waits or measures goes by real time, also at a clock that stands still, and also when the clock is
  set meanwhile: `pg_sleep`, `statement_timeout`, `lock_timeout`, `deadlock_timeout`, the timeouts of
  transactions and of idle sessions, autovacuum, `EXPLAIN ANALYZE`. Some other times are real ones too: those at which
  sessions and the server have started (`backend_start`, `pg_postmaster_start_time()`), and those of
  files.

  `uuidv7()` never goes back within a session, as in any PostgreSQL: after a journey to the future its times
  are those of the future until the clock shows a later one, or the cluster is reset.

  ## Handles

  The first argument is one of

    * a branch (`PgliteEx.branch/2`): its cluster, with all its connections;
    * a gate (`PgliteEx.Gate`) or a server: the clusters of all its connections that are open. `PgliteEx.Case` opens
      a gate for every test, as `:pglite_gate` in its context. If there is no connection yet, the functions
      wait for the first one, for at most five seconds;
    * a raw connection (`PgliteEx.open/2`): its cluster.

  A server in `:isolated` mode gives its program leave to have clocks set, those of its branches too. In
  `:shared` mode the result is `{:error, %PgliteEx.Error{code: "42501"}}`.
  """

  alias PgliteEx.{Branch, Error, Handle}

  @typedoc "What has the clusters whose clocks are set."
  @type handle :: PgliteEx.connection() | PgliteEx.server() | Branch.t()

  @microseconds %{
    day: 86_400_000_000,
    hour: 3_600_000_000,
    minute: 60_000_000,
    second: 1_000_000,
    millisecond: 1_000,
    microsecond: 1
  }

  @doc """
  Sets the clock to `time`; it goes on from there.

  The error has the code `"22008"` for a time before the year 1 or after the year 9999.

      :ok = PgliteEx.Clock.travel(gate, ~U[2030-12-31 23:59:59Z])
  """
  @spec travel(handle, DateTime.t()) :: :ok | {:error, Error.t()}
  def travel(handle, %DateTime{} = time),
    do: set(handle, [{"set", "travel"}, {"at", microseconds(time)}])

  @doc """
  Sets the clock so much later than it shows now, or earlier; it goes on from there, also if it stood
  still.

  The unit is one of `:day`, `:hour`, `:minute`, `:second`, `:millisecond` and `:microsecond`.

      :ok = PgliteEx.Clock.travel_by(gate, 30, :day)
      :ok = PgliteEx.Clock.travel_by(gate, -90)
  """
  @spec travel_by(handle, integer, unit) :: :ok | {:error, Error.t()}
        when unit: :day | :hour | :minute | :second | :millisecond | :microsecond
  def travel_by(handle, amount, unit \\ :second)
      when is_integer(amount) and is_map_key(@microseconds, unit) do
    by = Integer.to_string(amount * @microseconds[unit])
    set(handle, [{"set", "travel"}, {"by", by}])
  end

  @doc """
  Lets the clock stand still, at `time` or at what it shows now.

      :ok = PgliteEx.Clock.freeze(gate, ~U[2040-02-29 12:00:00.123456Z])
      :ok = PgliteEx.Clock.freeze(gate)
  """
  @spec freeze(handle, nil | DateTime.t()) :: :ok | {:error, Error.t()}
  def freeze(handle, time \\ nil)
  def freeze(handle, nil), do: set(handle, [{"set", "freeze"}])

  def freeze(handle, %DateTime{} = time),
    do: set(handle, [{"set", "freeze"}, {"at", microseconds(time)}])

  @doc "Sets the clock back to real time."
  @spec back(handle) :: :ok | {:error, Error.t()}
  def back(handle), do: set(handle, [{"set", "back"}])

  defp set(handle, options), do: Handle.request(handle, "clock", options)

  defp microseconds(time), do: time |> DateTime.to_unix(:microsecond) |> Integer.to_string()
end
