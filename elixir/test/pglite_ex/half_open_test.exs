defmodule PgliteEx.HalfOpenTest do
  @moduledoc "Which half-open connections have to go."
  use ExUnit.Case, async: true

  alias PgliteEx.HalfOpen

  # Enters connections at these times; returns what stays and, the oldest first, the numbers of those that have to go.
  defp enter(waiting \\ [], times, marks \\ fn _number -> HalfOpen.mark() end) do
    Enum.reduce(Enum.with_index(times), {waiting, []}, fn {now, number}, {waiting, gone} ->
      {waiting, more} = HalfOpen.enter(waiting, process(number), marks.(number), now)
      {waiting, gone ++ Enum.map(Enum.sort(more), &number/1)}
    end)
  end

  # Processes that are there for as long as a test.
  defp process(number) do
    processes = Process.get(:processes, %{})
    pid = processes[number] || spawn_link(fn -> receive do: (:never -> :ok) end)
    Process.put(:processes, Map.put(processes, number, pid))
    pid
  end

  defp number(pid) do
    {number, ^pid} = Enum.find(Process.get(:processes), fn {_number, other} -> other == pid end)
    number
  end

  test "the oldest go when there are too many" do
    {waiting, gone} = enter(List.duplicate(0, 1_027))
    assert gone == [0, 1, 2]
    assert length(waiting) == 1_024
  end

  test "those that have waited for long go sooner, and one makes room for one" do
    {waiting, []} = enter(List.duplicate(0, 64))
    {waiting, gone} = enter(waiting, [3_000, 3_000])
    assert length(gone) == 2
    assert length(waiting) == 64
    assert {_waiting, []} = enter(List.duplicate(0, 64) ++ List.duplicate(2_999, 64))
  end

  test "those that are half-open no more, or have ended, do not count" do
    settled = HalfOpen.mark()
    HalfOpen.settle(settled)
    assert {_waiting, []} = enter([], List.duplicate(0, 2_000), fn _number -> settled end)
    ended = spawn(fn -> :ok end)
    monitor = Process.monitor(ended)
    assert_receive {:DOWN, ^monitor, :process, _pid, _reason}
    ended = for _ <- 1..1_000, do: {0, ended, HalfOpen.mark()}
    assert {[_one], []} = HalfOpen.enter(ended, self(), HalfOpen.mark(), 3_000)
  end
end
