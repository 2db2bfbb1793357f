defmodule PgliteEx.MixTasksTest do
  # The shell of Mix, and environment variables, are the VM's.
  use ExUnit.Case, async: false

  alias Mix.Tasks.Compile.PglitePort
  alias Mix.Tasks.PgliteEx.Server
  alias PgliteEx.{Options, TaskServer}

  @moduletag :tmp_dir

  setup do
    Mix.shell(Mix.Shell.Process)
    program = System.get_env("PGLITE_PORT")

    on_exit(fn ->
      Mix.shell(Mix.Shell.IO)

      if program,
        do: System.put_env("PGLITE_PORT", program),
        else: System.delete_env("PGLITE_PORT")
    end)
  end

  test "compilation is content with a program that can be found" do
    assert {:noop, []} = PglitePort.run([])
    refute_received {:mix_shell, _kind, _message}
  end

  test "compilation says in one message what to do when there is none" do
    System.put_env("PGLITE_PORT", "/nowhere/pglite-port")
    assert {:noop, []} = PglitePort.run([])
    assert_received {:mix_shell, :error, [message]}
    assert message =~ "/nowhere/pglite-port"
    assert message =~ "mix pglite_ex.install"
    refute_received {:mix_shell, _kind, _message}
  end

  test "the server task's options become those of a server" do
    assert Server.server_options(port: 5000, mode: "isolated", warm: 2) ==
             [listen: {"127.0.0.1", 5000}, mode: :isolated, warm: 2]

    assert Server.server_options(socket: "/run/app")[:listen] == {:local, "/run/app"}
    # As of `pglite-port serve`.
    assert Server.server_options([])[:listen] == {"127.0.0.1", 5433}
  end

  test "the server task keeps the cluster, unless it is told otherwise" do
    assert Server.server_options([])[:data] == "pgdata"
    assert Server.server_options(data: "here")[:data] == "here"

    for option <- [memory: true, template: "t", mode: "isolated"],
        do: refute(Server.server_options([option])[:data])

    configured = [name: App, data: "there", listen: {"127.0.0.1", 1}, database: "app"]
    assert Server.server_options([], configured) == configured
    assert Server.server_options([memory: true], configured) == Keyword.delete(configured, :data)
    assert Server.server_options([port: 2], configured)[:listen] == {"127.0.0.1", 2}
  end

  for task <- [Mix.Tasks.PgliteEx.Install, Mix.Tasks.PgliteEx.Server] do
    test "#{inspect(task)} names an argument that it does not know" do
      assert_raise OptionParser.ParseError, ~r/--colour/, fn ->
        unquote(task).run(["--colour", "blue"])
      end

      assert_raise Mix.Error, ~r/blue/, fn -> unquote(task).run(["blue"]) end
    end
  end

  describe "the server task beside others" do
    setup do
      # A server in memory goes on until Mix ends.
      on_exit(fn ->
        with {_options, server} when is_pid(server) <-
               Application.get_env(:pglite_ex, TaskServer),
             do: PgliteEx.stop(server)

        TaskServer.delete()
        Application.delete_env(:pglite_ex, MyApp.Postgres)
      end)
    end

    test "runs one after the other, with their arguments" do
      Application.put_env(:pglite_ex, MyApp.Postgres, database: "app", after_start: &raise/1)

      Server.run(
        ["MyApp.Postgres", "--and", "pglite_ex.test_task"] ++
          ["--and", "do", "pglite_ex.test_task", "--start-child", "--name", "MyApp.Postgres"]
      )

      assert_received {:mix_shell, :info, ["the task ran beside a server"]}
      assert_received {:mix_shell, :info, ["the child is :undefined"]}
      # It was left to the child, which is not a server of its own.
      assert_received {:prepared, connection_opts}
      assert connection_opts[:database] == "app"
    end

    test "keeps what they have made, and stops", %{tmp_dir: directory} do
      data = Path.join(directory, "pgdata")
      Server.run(["--port", "0", "--data", data, "--and", "pglite_ex.test_task"])
      assert_received {:mix_shell, :info, ["the task ran beside a server"]}
      assert File.exists?(Path.join(data, "PG_VERSION"))
      # The server has stopped, so that another one can open the directory.
      refute File.exists?(Path.join(data, "postmaster.pid"))
      {:ok, server} = PgliteEx.start_link(data: data)
      PgliteEx.stop(server)
    end

    test "goes on for the next ones of an alias when it is in memory" do
      Application.put_env(:pglite_ex, MyApp.Postgres, [])
      Server.run(["MyApp.Postgres", "--and", "pglite_ex.test_task"])
      server = Process.whereis(MyApp.Postgres)
      # Mix runs a task only once unless it says so itself.
      Mix.Task.run("pglite_ex.server", ["MyApp.Postgres", "--and", "pglite_ex.test_task"])
      Mix.Task.run("pglite_ex.server", ["MyApp.Postgres", "--and", "pglite_ex.test_task"])
      for _ <- 1..3, do: assert_received({:mix_shell, :info, ["the task ran beside a server"]})
      assert Process.whereis(MyApp.Postgres) == server
    end

    test "uses a server that listens at its address already", %{tmp_dir: directory} do
      {:ok, server} = PgliteEx.start_link(mode: :isolated)
      {_host, port} = PgliteEx.address(server)
      listen = ["--port", "#{port}", "--data", Path.join(directory, "pgdata")]
      Server.run(listen ++ ["--and", "pglite_ex.test_task", "--start-child", "--port", "#{port}"])
      assert_received {:mix_shell, :info, ["the child is :undefined"]}
      refute File.exists?(Path.join(directory, "pgdata"))
      PgliteEx.stop(server)
    end

    test "shows no password when the function of a child fails" do
      options = [name: MyApp.Postgres, auth: :scram_sha_256, password: "correct horse"]
      {:ok, server} = PgliteEx.start_link(options)
      Process.unlink(server)
      TaskServer.put(Options.new!(options), server)

      %{start: {module, function, arguments}} =
        PgliteEx.child_spec([after_start: fn opts -> raise inspect(opts) end] ++ options)

      assert {:error, error} = apply(module, function, arguments)
      assert error.message =~ ~s(password: "…")
      refute error.message =~ "correct horse"
    end

    test "needs a task, and options for a server by name" do
      assert_raise Mix.Error, ~r/needs a task after --and/, fn -> Server.run(["--and"]) end

      assert_raise Mix.Error, ~r/config :pglite_ex, MyApp.Postgres/, fn ->
        Server.run(["MyApp.Postgres", "--and", "pglite_ex.test_task"])
      end
    end
  end

  test "the server task says in a sentence why it cannot start" do
    {:ok, taken} = :gen_tcp.listen(0, ip: {127, 0, 0, 1})
    {:ok, port} = :inet.port(taken)

    assert_raise Mix.Error, ~r/address already in use/, fn ->
      Server.run(["--port", "#{port}", "--memory"])
    end
  end
end
