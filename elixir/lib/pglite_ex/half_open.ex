defmodule PgliteEx.HalfOpen do
  @moduledoc false
  # The connections of a listener that the program does not know yet, because their clients have still to ask for TLS or
  # to agree on it: how many there may be, and which have to go when there are more.
  #
  # Anybody can open one and say nothing. The rule is the one by which the program bounds connections whose clients have
  # not authenticated (`src/connection/half_open.rs`); it counts those that get past this one.

  # How many there may be for longer than `@patience`.
  @few 64
  # How long a client may take in any case, unless there are `@many`, in milliseconds.
  @patience 3_000
  # How many there may be at all.
  @many 1_024

  @typedoc "Whether a connection is still half-open; shared with its process."
  @opaque mark :: :atomics.atomics_ref()

  @typedoc "The connections and since when they are there, the newest first; some may be half-open no more."
  @type t :: [{since :: integer, pid, mark}]

  @doc "The mark of a new connection."
  @spec mark() :: mark
  def mark, do: :atomics.new(1, [])

  @doc "The connection is not half-open any more."
  @spec settle(mark) :: :ok
  def settle(mark), do: :atomics.put(mark, 1, 1)

  @doc "Adds a connection that is new `now`; returns those that stay, and those that have to go."
  @spec enter(t, pid, mark, now :: integer) :: {t, [pid]}
  def enter(waiting, pid, mark, now \\ System.monotonic_time(:millisecond)) do
    waiting = [{now, pid, mark} | waiting]

    if length(waiting) > @few,
      do: crowd_out(Enum.filter(waiting, &half_open?/1), now),
      else: {waiting, []}
  end

  defp crowd_out(waiting, now) do
    {few, others} = Enum.split(waiting, @few)

    {recent, old} =
      Enum.split_while(others, fn {since, _pid, _mark} -> now - since < @patience end)

    {recent, too_many} = Enum.split(recent, @many - @few)
    {few ++ recent, for({_since, pid, _mark} <- too_many ++ old, do: pid)}
  end

  defp half_open?({_since, pid, mark}), do: :atomics.get(mark, 1) == 0 and Process.alive?(pid)
end
