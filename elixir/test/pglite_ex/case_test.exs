defmodule PgliteEx.CaseTest.DataCase do
  @moduledoc "A case template with a setup of its own, as an application has one."
  use ExUnit.CaseTemplate

  using do
    quote do
      use PgliteEx.Case, server: :case_order_test_server
    end
  end

  # It runs before those of the template that is used above.
  setup context do
    %{in_template: context[:connection_opts]}
  end
end

defmodule PgliteEx.CaseOrderTest do
  use PgliteEx.CaseTest.DataCase, async: true

  setup_all do
    start_supervised!({PgliteEx, name: :case_order_test_server, mode: :isolated})
    :ok
  end

  setup context do
    %{in_module: context[:connection_opts]}
  end

  test "every setup finds the database of its test, which is one", context do
    assert is_integer(context.in_template[:port])
    assert context.in_template == context.connection_opts
    assert context.in_module == context.connection_opts
  end
end

defmodule PgliteEx.CaseTest do
  use PgliteEx.Case, async: true, server: :case_test_server

  alias PgliteEx.WireClient

  # Before the setup of the case template, which uses it.
  setup_all do
    %{server: start_supervised!({PgliteEx, name: :case_test_server, mode: :isolated})}
  end

  for n <- 1..3 do
    test "test #{n} has a database of its own", %{connection_opts: options} do
      {:ok, client} = connect(options)
      assert {:ok, []} = WireClient.query(client, "create table mine (n int)")
      assert {:ok, []} = WireClient.query(client, "select * from mine")
    end
  end

  test "a gate has a port of its own, and lives no longer than its test",
       %{connection_opts: options, server: server, pglite_gate: gate} do
    {_host, port} = PgliteEx.address(server)
    assert options[:port] != port
    {:ok, client} = connect(options)
    :ok = stop_supervised(PgliteEx.Gate)
    refute Process.alive?(gate)
    # Told, and closed.
    assert {:ok, {?E, _fields}} = WireClient.receive_message(client)
    assert {:error, :closed} = :gen_tcp.recv(client, 0)
  end

  test "a client of a gate whose server is gone is told so", %{pglite_gate: gate} do
    {:ok, server} = PgliteEx.start_link(mode: :isolated)
    other = start_supervised!({PgliteEx.Gate, server: server}, id: :other_gate)
    :ok = PgliteEx.stop(server)

    for _ <- 1..5 do
      client = WireClient.connect!(other)
      assert {:ok, {?E, fields}} = WireClient.receive_message(client)
      assert WireClient.sqlstate(fields) == "57P01"
    end

    assert {_client, _key} = WireClient.start_session!(gate)
  end

  test "a gate without connections has nothing to freeze", %{pglite_gate: gate} do
    assert {:error, %PgliteEx.Error{code: "08003"}} = PgliteEx.Gate.freeze(gate, "nothing")
  end

  test "the test's function is wrapped, and its result and failure are those of the test",
       context do
    assert PgliteEx.Case.run(context, fn -> :result end) == :result

    assert_raise ArgumentError, fn ->
      PgliteEx.Case.run(context, fn -> raise ArgumentError end)
    end
  end

  test "a failing test without a database to keep says so, and fails as it did", context do
    context = put_in(context.pglite_ex, server: :case_test_server, on_failure: :keep)

    output =
      ExUnit.CaptureIO.capture_io(fn ->
        assert_raise ArgumentError, fn ->
          PgliteEx.Case.run(context, fn -> raise ArgumentError end)
        end
      end)

    assert output =~ "is not kept: no connection to freeze is open"
  end

  @tag :freeze
  test "a failing test's database is kept, with how to connect to it", context do
    context = put_in(context.pglite_ex, server: :case_test_server, on_failure: :keep)
    # The database is looked at with another server than the one that has made it.
    {:ok, client} = connect(context.connection_opts)
    {:ok, []} = WireClient.query(client, "create table evidence as select 'found' as what")

    output =
      ExUnit.CaptureIO.capture_io(fn ->
        catch_throw(PgliteEx.Case.run(context, fn -> throw(:failure) end))
      end)

    assert output =~ "The last 10 databases of failed tests are kept, in /"
    assert [_, arguments] = Regex.run(~r/MIX_ENV=test mix pglite_ex.server (.+)$/m, output)
    Mix.shell(Mix.Shell.Process)
    test = self()

    # The task runs until it is interrupted.
    task =
      spawn_link(fn ->
        Process.put(:"$callers", [test])
        Mix.Tasks.PgliteEx.Server.run(String.split(arguments))
      end)

    assert_receive {:mix_shell, :info, [url]}, 10_000
    Mix.shell(Mix.Shell.IO)
    assert {"found\n", 0} = System.cmd("psql", [url, "-Atc", "select what from evidence"])
    monitor = Process.monitor(task)
    Process.unlink(task)
    Process.exit(task, :kill)
    assert_receive {:DOWN, ^monitor, :process, ^task, :killed}
  end

  @tag :freeze
  @tag :tmp_dir
  test "the command names the server's own directories", %{tmp_dir: directory} = context do
    cache = Path.join(directory, "it's a cache")
    # The one that all tests share.
    File.ln_s!(:filename.basedir(:user_cache, "pglite-port"), cache)
    server = start_supervised!({PgliteEx, mode: :isolated, cache_dir: cache}, id: :other_cache)
    gate = start_supervised!({PgliteEx.Gate, server: server}, id: :other_gate)
    {:ok, _client} = gate |> PgliteEx.connection_opts() |> connect()
    context = %{context | pglite_gate: gate, pglite_ex: [server: server, on_failure: :keep]}

    output =
      ExUnit.CaptureIO.capture_io(fn ->
        catch_throw(PgliteEx.Case.run(context, fn -> throw(:failure) end))
      end)

    assert [_, arguments] = Regex.run(~r/mix pglite_ex.server (.+)$/m, output)
    {words, 0} = System.cmd("sh", ["-c", "printf '%s\\n' " <> arguments])
    assert ["--cache-dir", ^cache] = words |> String.split("\n", trim: true) |> Enum.take(-2)
    assert output =~ "are kept, in #{cache}."
  end

  @tag :freeze
  test "of the databases that failed tests leave, the oldest go first", context do
    server = :case_test_server
    {:ok, _client} = connect(context.connection_opts)
    # Somebody else's, who runs tests elsewhere.
    :ok = PgliteEx.Gate.freeze(context.pglite_gate, "failed_elsewhere", "failed in /elsewhere")

    fail = fn on_failure ->
      context = put_in(context.pglite_ex, server: server, on_failure: on_failure)

      output =
        ExUnit.CaptureIO.capture_io(fn ->
          catch_throw(PgliteEx.Case.run(context, fn -> throw(:failure) end))
        end)

      [name] = Regex.run(~r/failed_[0-9a-f]+/, output)
      name
    end

    kept = fn ->
      {:ok, templates} = PgliteEx.Template.list(server)
      own = "failed in #{File.cwd!()}"
      Enum.sort(for %{key: ^own, name: name} <- templates, do: name)
    end

    first = fail.({:keep, 1})
    assert kept.() == [first]
    second = fail.(:keep)
    assert kept.() == Enum.sort([first, second])
    third = fail.({:keep, 2})
    assert kept.() == Enum.sort([second, third])
    # It was not dropped.
    assert :ok = PgliteEx.Template.drop(server, "failed_elsewhere")
    assert Enum.each(kept.(), &PgliteEx.Template.drop(server, &1)) == :ok
  end

  @tag :freeze
  test "a failing test's branch is kept, also where it has no connection", context do
    own = [server: :case_test_server, on_failure: :keep]
    branch = PgliteEx.branch!(:case_test_server)
    client = branch |> PgliteEx.connection_opts() |> WireClient.start_session_with!()
    {:ok, []} = WireClient.query(client, "create table evidence as select 'found' as what")
    :gen_tcp.close(client)
    context = context |> Map.delete(:pglite_gate) |> Map.merge(%{branch: branch, pglite_ex: own})

    output =
      ExUnit.CaptureIO.capture_io(fn ->
        catch_throw(PgliteEx.Case.run(context, fn -> throw(:failure) end))
      end)

    assert [name] = Regex.run(~r/failed_[0-9a-f]+/, output)
    url = PgliteEx.url(:case_test_server, name)
    assert {"found\n", 0} = System.cmd("psql", [url, "-Atc", "select what from evidence"])
    assert :ok = PgliteEx.Template.drop(:case_test_server, name)
  end

  test "every test of a module is wrapped", context do
    defmodule Failing do
      # As `use PgliteEx.Case` does, without becoming a part of this run.
      @before_compile PgliteEx.Case

      def unquote(:"test fails")(_context), do: raise(ArgumentError)
    end

    context = Map.merge(context, %{test: :"test fails", pglite_ex: [on_failure: :keep]})

    output =
      ExUnit.CaptureIO.capture_io(fn ->
        assert_raise ArgumentError, fn -> apply(Failing, :"test fails", [context]) end
      end)

    assert output =~ ~s(The database of "test fails" is not kept)
  end

  defp connect(options) do
    {:ok, client} =
      :gen_tcp.connect(String.to_charlist(options[:hostname]), options[:port], [
        :binary,
        active: false
      ])

    :ok = :gen_tcp.send(client, WireClient.startup_packet(database: options[:database]))
    {:ok, _messages} = WireClient.receive_answer(client)
    {:ok, client}
  end
end

for {mode, options} <- [isolated: [mode: :isolated], shared: [database: "shared_origin"]] do
  defmodule Module.concat(PgliteEx, "CasePool#{mode}Test") do
    server = :"case_pool_#{mode}_test_server"
    use PgliteEx.Case, async: true, server: server, pool_size: 2, on_failure: :drop

    alias PgliteEx.WireClient

    @server server
    @options options

    setup_all do
      start_supervised!({PgliteEx, [name: @server] ++ @options})
      :ok
    end

    for n <- 1..2 do
      test "#{mode}, test #{n} has a database of its own, which all its connections see", %{
        connection_opts: options,
        branch: branch
      } do
        assert options[:pool_size] == 2
        [one, two] = for _ <- 1..2, do: WireClient.start_session_with!(options)
        assert {:ok, []} = WireClient.query(one, "create table mine as select 1 as n")
        :gen_tcp.close(one)
        assert {:ok, [["1"]]} = WireClient.query(two, "select n from mine")
        assert {:ok, [[name]]} = WireClient.query(two, "show pglite.cluster")
        assert name == branch.name
      end
    end

    test "#{mode}: the branch ends with the test, and after what was started in it", %{
      connection_opts: options,
      branch: branch
    } do
      client = WireClient.start_session_with!(options)
      :ok = stop_supervised(PgliteEx.Branch)
      assert {:ok, {?E, fields}} = WireClient.receive_message(client)
      assert WireClient.sqlstate(fields) == "57P01"
      # It is dropped when its owner has ended, by another process.
      PgliteEx.Servers.await_gone(branch)
    end
  end
end
