defmodule Integration.BranchSandboxModesTest do
  @moduledoc "The modes of PgliteEx.Sandbox, which are those of the repo, and the base, which is that of all tests."
  use ExUnit.Case, async: false

  alias Integration.Account
  alias Integration.BranchRepo, as: Repo
  alias PgliteEx.Sandbox

  @moduletag mode: :shared

  setup do
    on_exit(fn -> Sandbox.mode(Repo, :manual) end)
  end

  defp insert!(email), do: Repo.insert!(Account.changeset(%Account{}, %{email: email}))
  defp count, do: Repo.aggregate(Account, :count)

  # Runs a function in a process that has nothing to do with the test.
  defp elsewhere(fun) do
    test = self()

    spawn_link(fn ->
      result =
        try do
          fun.()
        rescue
          error -> error.__struct__
        end

      send(test, {:elsewhere, result})
    end)

    assert_receive {:elsewhere, result}, 20_000
    result
  end

  test "in shared mode all processes use the branch of one owner, until it ends" do
    owner = Sandbox.start_owner!(Repo, shared: true)
    insert!("shared@example.com")
    assert elsewhere(&count/0) == 1
    elsewhere(fn -> insert!("other@example.com") end)
    assert count() == 2
    assert :ok = Sandbox.mode(Repo, {:shared, owner})
    :ok = Sandbox.stop_owner(owner)
    # The mode is manual again, and the next owner has a branch without these.
    next = Sandbox.start_owner!(Repo, shared: true)
    assert elsewhere(&count/0) == 0
    :ok = Sandbox.stop_owner(next)
    monitor = Process.monitor(next)
    assert_receive {:DOWN, ^monitor, :process, ^next, _reason}
    assert elsewhere(&count/0) == DBConnection.OwnershipError
  end

  test "one owner is shared at a time, and those that are none cannot be" do
    assert :not_found = Sandbox.mode(Repo, {:shared, self()})
    owner = Sandbox.start_owner!(Repo)
    assert :not_owner = Sandbox.mode(Repo, {:shared, self()})
    assert :ok = Sandbox.mode(Repo, {:shared, owner})
    test = self()

    elsewhere(fn ->
      :ok = Sandbox.checkout(Repo)
      send(test, {:mode, Sandbox.mode(Repo, {:shared, self()})})
    end)

    assert_receive {:mode, :already_shared}
    Sandbox.stop_owner(owner)
    assert_raise FunctionClauseError, fn -> Sandbox.mode(Repo, :other) end
  end

  test "a change of the mode ends all branches, but that of the owner that is shared" do
    test = self()

    other =
      spawn_link(fn ->
        :ok = Sandbox.checkout(Repo)
        insert!("other@example.com")
        send(test, :ready)
        receive do: (:ask -> send(test, {:other, Sandbox.checkin(Repo)}))
      end)

    assert_receive :ready, 20_000
    owner = Sandbox.start_owner!(Repo)
    insert!("kept@example.com")
    :ok = Sandbox.mode(Repo, {:shared, owner})
    send(other, :ask)
    assert_receive {:other, :not_found}
    assert count() == 1
    :ok = Sandbox.mode(Repo, :manual)
    assert_raise DBConnection.OwnershipError, &count/0
    Sandbox.stop_owner(owner)
  end

  test "in mode :auto, and outside of the sandbox, changes are there for the branches that follow" do
    :ok = Sandbox.mode(Repo, :auto)
    account = insert!("auto@example.com")
    assert elsewhere(&count/0) == 1
    :ok = Sandbox.mode(Repo, :manual)

    owner = Sandbox.start_owner!(Repo)
    assert count() == 1
    Repo.delete!(account)
    assert count() == 0
    Sandbox.stop_owner(owner)

    elsewhere(fn ->
      :ok = Sandbox.checkout(Repo)
      insert!("branch@example.com")
      # What it owned is gone, and the base has what it had.
      assert Sandbox.unboxed_run(Repo, &count/0) == 1
      assert_raise DBConnection.OwnershipError, &count/0
      assert_raise DBConnection.OwnershipError, fn -> Sandbox.branch!(Repo) end
      :ok = Sandbox.checkout(Repo, sandbox: false)
      Repo.delete!(account)
      assert_raise ArgumentError, ~r/base/, fn -> Sandbox.branch!(Repo) end
    end)

    owner = Sandbox.start_owner!(Repo)
    assert count() == 0
    Sandbox.stop_owner(owner)
  end

  test "the types that tests use are asked for once, and not by the first connection of every branch" do
    query = fn -> Repo.query!("select 'a@example.com'::citext, row(1, 2), '{1}'::int[]").rows end

    # The first branch of a repo is asked for all types, and tells nothing about those that it uses.
    for _ <- 1..2 do
      owner = Sandbox.start_owner!(Repo)
      assert query.() == [["a@example.com", {1, 2}, [1]]]
      # When it ends, what was learnt has been passed on.
      gate = Repo |> Sandbox.branch!() |> PgliteEx.Branch.gate!() |> Process.monitor()
      Sandbox.stop_owner(owner)
      assert_receive {:DOWN, ^gate, :process, _pid, _reason}, 10_000
    end

    # What Postgrex does with a row of the answer, in the process of the connection, which does not exist yet.
    {:module, Postgrex.Types} = Code.ensure_loaded(Postgrex.Types)
    1 = :erlang.trace_pattern({Postgrex.Types, :build_type_info, 1}, true)
    :erlang.trace(:new_processes, true, [:call])
    on_exit(fn -> :erlang.trace_pattern({Postgrex.Types, :build_type_info, 1}, false) end)

    next = Sandbox.start_owner!(Repo)
    assert query.() == [["a@example.com", {1, 2}, [1]]]
    refute_received {:trace, _pid, :call, {Postgrex.Types, :build_type_info, _row}}
    # One that is new is asked for.
    Repo.query!("create type pair as (one int, two int)")
    assert Repo.query!("select (1, 2)::pair").rows == [[{1, 2}]]
    assert_received {:trace, _pid, :call, {Postgrex.Types, :build_type_info, _row}}
    Sandbox.stop_owner(next)
  end

  test "a branch begins with a type that needs no other" do
    alias PgliteEx.Sandbox.Types
    types = Types.learn(Types.new(), :all, for(oid <- [1000, 25, 16], do: %{oid: oid}))
    assert Types.used(types) == [%{oid: 16}]
    assert Types.used(Types.learn(Types.new(), :all, [])) == []
  end

  test "Mix tasks migrate the base" do
    :ok = Sandbox.mode(Repo, :auto)
    repo = ["-r", "Integration.BranchRepo", "--quiet"]
    Mix.Task.rerun("ecto.rollback", ["--step", "1" | repo])
    Mix.Task.rerun("ecto.migrate", repo)
    assert Repo.query!("select count(*) from schema_migrations").rows == [[3]]
  end
end
