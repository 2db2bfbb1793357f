defmodule Integration.PasswordTest do
  @moduledoc "The password of a server, in the processes of a repo in the sandbox: it is shown nowhere."
  use ExUnit.Case, async: false

  import ExUnit.CaptureLog

  alias PgliteEx.Sandbox

  @moduletag mode: :shared

  @password "correct horse: battery/staple"

  defmodule Repo do
    use Ecto.Repo, otp_app: :integration, adapter: Ecto.Adapters.Postgres

    @impl Ecto.Repo
    def init(context, config),
      do: {:ok, PgliteEx.repo_config(Integration.SecuredPostgres, context, config)}
  end

  setup_all do
    options = [name: Integration.SecuredPostgres, auth: :scram_sha_256, password: @password]
    start_supervised!({PgliteEx, options})
    :ok
  end

  setup do
    # Its supervisor does not start it again.
    repo = start_supervised!({Repo, pool: Sandbox, pool_size: 2}, restart: :temporary)
    # In the mode `:auto`, this is the base.
    assert Repo.query!("select current_user").rows == [["postgres"]]
    :ok = Sandbox.checkout(Repo)
    assert Repo.query!("select current_user").rows == [["postgres"]]
    [{_id, pool, :worker, _modules}] = Supervisor.which_children(repo)
    %{base: base} = :sys.get_state(pool)
    assert [own] = linked(pool, Sandbox.Connections) -- [base]
    %{repo: repo, pool: pool, base: base, own: own}
  end

  # The processes with this module that are linked to a process.
  defp linked(pid, module) do
    {:links, links} = Process.info(pid, :links)

    for link <- links,
        is_pid(link),
        {:dictionary, dictionary} <- [Process.info(link, :dictionary)],
        match?({^module, _function, _arity}, dictionary[:"$initial_call"]),
        do: link
  end

  defp shown?(term) when is_binary(term), do: term =~ @password
  defp shown?(term), do: shown?(inspect(term, limit: :infinity, printable_limit: :infinity))

  test "in no state, no status and no child specification", context do
    %{repo: repo, pool: pool, base: base, own: own} = context
    assert [of_base] = linked(base, DBConnection.Connection)
    assert [of_own] = linked(own, DBConnection.Connection)
    for pid <- [repo, pool, base, own], do: refute(shown?(:sys.get_state(pid)))

    for pid <- [repo, pool, base, own, of_base, of_own],
        do: refute(shown?(:sys.get_status(pid)))

    # Supervisors report them.
    for {id, _pid, _type, _modules} <- Supervisor.which_children(repo),
        do: refute(shown?(:supervisor.get_childspec(repo, id)))
  end

  test "not in what is logged when the pool crashes", %{repo: repo, pool: pool} do
    refute shown?(log_of_crash(pool, repo))
  end

  test "not in what is logged when the connections of the base crash", context do
    refute shown?(log_of_crash(context.base, context.repo))
  end

  test "not in what is logged when the connections of a branch crash", %{own: own} do
    refute shown?(log_of_crash(own, own))
  end

  # What Logger gets when a process has a message that it cannot handle, and until another one has ended.
  defp log_of_crash(pid, last) do
    monitor = Process.monitor(last)

    log =
      capture_log(fn ->
        assert {{:function_clause, _stacktrace}, _call} =
                 catch_exit(GenServer.call(pid, :no_such_call))

        assert_receive {:DOWN, ^monitor, :process, ^last, _reason}, 10_000
      end)

    assert log =~ "Last message"
    assert log =~ "no_such_call"
    log
  end
end
