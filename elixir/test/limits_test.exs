defmodule PgliteEx.LimitsTest do
  use ExUnit.Case, async: true

  alias PgliteEx.{Limits, Parts, Servers, Session}

  doctest Limits

  @table "create table t (filler text)"
  @rows "insert into t select repeat(md5(n::text), 32) from generate_series(1, 100000) n"

  defp code(server, sql, options \\ []) do
    {:error, error} =
      Session.run(Parts.registry!(server), "postgres", options, fn session ->
        with {:ok, _rows} <- Session.query(session, @table), do: Session.query(session, sql)
      end)

    error.code
  end

  test "the clusters of a server have its limits" do
    server = Servers.start!(mode: :isolated, cluster_memory_limit: "48MB", memory_limit: "none")
    assert code(server, @rows) == "53100"
    assert code(server, "select length(repeat('x', 400000000))") == "53200"
  end

  test "a branch has limits of its own, and says what it uses" do
    server = Servers.start!(mode: :shared)
    branch = PgliteEx.branch!(server, memory_limit: "64MB", disk_limit: 500_000_000)
    {:ok, stats} = PgliteEx.stats(branch)
    assert %{"memory_limit" => 67_108_864, "disk_limit" => 500_000_000} = Map.new(stats)
    assert Map.new(stats)["disk"] > 1_000_000

    # That of an origin is that of its branches.
    {:ok, stats} = branch |> PgliteEx.branch!() |> PgliteEx.stats()
    assert Map.new(stats)["memory_limit"] == 67_108_864
  end

  test "what is no size is refused where it is given" do
    assert_raise ArgumentError, ~r/it takes a number of bytes/, fn ->
      PgliteEx.start_link(memory_limit: "much")
    end

    server = Servers.start!(mode: :shared)

    assert_raise ArgumentError, ~r/option disk_limit: :none is not allowed/, fn ->
      PgliteEx.branch(server, disk_limit: :none)
    end

    assert {:error, %{code: "22023", message: message}} =
             PgliteEx.branch(server, memory_limit: "1MB")

    assert message =~ "a memory limit of 1MB is too low: a cluster needs 16MB"
  end
end
