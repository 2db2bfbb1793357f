defmodule PgliteEx.HealthTest do
  use ExUnit.Case, async: true

  alias PgliteEx.{BadProgram, Error, LiveDashboard, OperatingSystem, Parts, Servers, Session}

  doctest LiveDashboard, only: [bytes: 1]

  @query %{sort_by: :name, sort_dir: :asc, limit: 10, search: nil}

  test "is ready while clients are let in, and starting while after_start has not returned" do
    test = self()

    after_start = fn _connection_opts ->
      send(test, {:health, PgliteEx.health(:health_test)})
      :ok
    end

    server = Servers.start!(name: :health_test, after_start: after_start)
    assert_receive {:health, {:ok, %{live: true, ready: false}}}
    assert {:ok, %{live: true, ready: true, figures: figures}} = PgliteEx.health(server)
    assert %{"connections" => 0, "clusters" => 1, "memory" => memory} = figures
    assert memory > 1_000_000
    {:ok, branch} = PgliteEx.branch(server)
    assert {:ok, %{ready: true, figures: %{"clusters" => 2}}} = PgliteEx.health(branch)
  end

  test "is not ready when the program has no memory for another client, and is again when there is some" do
    server = Servers.start!(mode: :isolated, memory_limit: "96MB")
    sessions = fill(server, [])
    assert {:ok, %{live: true, ready: false, figures: figures}} = PgliteEx.health(server)
    assert figures["memory_used"] >= figures["memory_limit"]
    assert {"State", "not ready"} in LiveDashboard.cards(server, node())
    Enum.each(sessions, &send(&1.pid, :leave))
    Task.await_many(sessions)
    assert :ok = until_ready(server)
  end

  # Connections end after their clients have closed them.
  defp until_ready(server, deadline \\ System.monotonic_time(:millisecond) + 10_000) do
    case PgliteEx.health(server) do
      {:ok, %{ready: true}} ->
        :ok

      health ->
        if System.monotonic_time(:millisecond) < deadline,
          do: until_ready(server, deadline),
          else: health
    end
  end

  # Opens sessions with some megabytes each until the server takes no more.
  defp fill(server, sessions) do
    test = self()
    table = "create table t as select repeat(md5(n::text), 32) from generate_series(1, 4000) n"

    session =
      Task.async(fn ->
        Session.run(Parts.registry!(server), "postgres", [], fn session ->
          filled = Session.query(session, table)
          send(test, {:filled, self()})
          receive do: (:leave -> filled)
        end)
      end)

    %Task{pid: pid, ref: ref} = session

    receive do
      {:filled, ^pid} -> fill(server, [session | sessions])
      {^ref, {:error, %Error{code: "53300"}}} -> sessions
    end
  end

  @tag :tmp_dir
  test "is an error while the program hangs or restarts, and when it is stopped", %{
    tmp_dir: directory
  } do
    gate = BadProgram.make_gate!(directory)
    program = BadProgram.write!(directory, "await_gate; hello; cat > /dev/null")
    opening = Task.async(fn -> BadProgram.open_gate!(gate) end)
    server = Servers.start!(executable: program, mode: :isolated)
    Task.await(opening)
    assert {:error, %Error{code: :timeout}} = PgliteEx.health(server, 50)

    OperatingSystem.kill_program!(server)
    # The next program waits at the gate.
    assert {:error, %Error{code: "57P03"}} = PgliteEx.health(server, 50)
    assert [{"State", "57P03" <> _why}] = LiveDashboard.cards(server, node())
    assert {[], 0} = LiveDashboard.clusters(server, @query, node())

    BadProgram.open_gate!(gate)
    assert :ok = PgliteEx.await_ready(server, 5_000)
    PgliteEx.stop(server)
    assert {:error, %Error{code: "57P01"}} = PgliteEx.health(server)
    assert [{"State", "57P01" <> _why}] = LiveDashboard.cards(server, node())
  end

  test "a server that there is not has an error as well" do
    assert {:error, %Error{code: "57P01"}} = PgliteEx.health(:there_is_none)
  end

  test "the page for LiveDashboard has the figures, clusters and templates of the program" do
    server = Servers.start!()
    {:ok, branch} = PgliteEx.branch(server)
    cards = LiveDashboard.cards(server, node())
    assert {"State", "ready"} in cards
    assert {"Clusters", "2"} in cards
    assert {"Turns since the start", turns} = List.keyfind(cards, "Turns since the start", 0)
    assert String.to_integer(turns) > 0
    assert {_title, memory} = List.keyfind(cards, "Memory of the program", 0)
    assert memory =~ ~r/^[\d.]+ [kMG]B$/

    {clusters, 2} = LiveDashboard.clusters(server, @query, node())
    assert [%{name: name, origin: origin}, %{name: "default"}] = clusters
    assert name == branch.name and origin =~ "branch of default"

    assert {[%{name: "default"}], 1} =
             LiveDashboard.clusters(server, %{@query | search: "def"}, node())

    assert {[%{name: "default"}], 2} =
             LiveDashboard.clusters(server, %{@query | sort_dir: :desc, limit: 1}, node())

    by_age = %{@query | sort_by: :made_at, sort_dir: :desc}
    assert {[%{name: ^name}, _origin], 2} = LiveDashboard.clusters(server, by_age, node())
    {:ok, known} = PgliteEx.Template.list(server)
    {templates, count} = LiveDashboard.templates(server, %{@query | limit: 1000}, node())
    assert length(known) == count and length(templates) == count
  end

  test "a node that is not there is a page without figures" do
    assert [{"State", _why}] = LiveDashboard.cards(:server, :"none@127.0.0.1")
    assert {[], 0} = LiveDashboard.templates(:server, @query, :"none@127.0.0.1")
  end
end
