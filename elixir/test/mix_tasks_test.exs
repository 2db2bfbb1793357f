defmodule PgliteEx.MixTasksTest do
  # The shell of Mix, and environment variables, are the VM's.
  use ExUnit.Case, async: false

  alias Mix.Tasks.Compile.PglitePort

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
    assert Mix.Tasks.PgliteEx.Server.server_options(port: 5433, mode: "isolated", warm: 2) ==
             [listen: {"127.0.0.1", 5433}, mode: :isolated, warm: 2]

    assert Mix.Tasks.PgliteEx.Server.server_options(socket: "/run/app")[:listen] ==
             {:local, "/run/app"}
  end

  for task <- [Mix.Tasks.PgliteEx.Install, Mix.Tasks.PgliteEx.Server] do
    test "#{inspect(task)} names an argument that it does not know" do
      assert_raise OptionParser.ParseError, ~r/--colour/, fn ->
        unquote(task).run(["--colour", "blue"])
      end

      assert_raise Mix.Error, ~r/blue/, fn -> unquote(task).run(["blue"]) end
    end
  end

  test "the server task prints its URL and runs another task beside the server" do
    Mix.Tasks.PgliteEx.Server.run(["--port", "0", "--and", "pglite_ex.test_task"])
    assert_received {:mix_shell, :info, ["postgresql://postgres@127.0.0.1:" <> _port]}
    assert_received {:mix_shell, :info, ["the task ran beside a server"]}
  end

  test "the server task says in a sentence why it cannot start" do
    {:ok, taken} = :gen_tcp.listen(0, ip: {127, 0, 0, 1})
    {:ok, port} = :inet.port(taken)

    assert_raise Mix.Error, ~r/address already in use/, fn ->
      Mix.Tasks.PgliteEx.Server.run(["--port", "#{port}"])
    end
  end
end
