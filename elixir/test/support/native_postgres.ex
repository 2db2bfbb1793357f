defmodule PgliteEx.NativePostgres do
  @moduledoc "Native PostgreSQL with a new cluster, beside which something is tested or measured."

  # The directory of its programs, if it is not one of Debian's packages.
  @variable "PGLITE_PORT_BENCH_POSTGRES"
  # Ends the server when its own standard input ends, which it does with its owner and with the VM.
  @shell ~S("$0" "$@" </dev/null & server=$!; read -r _; kill -QUIT $server; wait $server)

  @doc "The directory with the newest installed one's programs; `nil` if there is none."
  def programs do
    given = System.get_env(@variable)
    directories = if given, do: [given], else: Path.wildcard("/usr/lib/postgresql/*/bin")

    directories
    |> Enum.filter(&File.exists?(Path.join(&1, "postgres")))
    |> Enum.max_by(&version/1, fn -> nil end)
  end

  @doc """
  Starts a server, which ends with the calling process; returns options with which clients connect.

  ## Options

    * `:programs` - the directory of its programs, `programs/0` by default
    * `:directory` - an existing one, in which it gets its own; the one for temporary files by default
    * `:on_exit` - is called with the function that ends the server and removes its files, to have it
      called at the end; the test's `ExUnit.Callbacks.on_exit/1` by default
  """
  def start!(options \\ []) do
    programs = Keyword.get_lazy(options, :programs, &programs/0)
    on_exit = Keyword.get(options, :on_exit, &ExUnit.Callbacks.on_exit/1)
    parent = Keyword.get_lazy(options, :directory, &System.tmp_dir!/0)
    name = "pglite_ex_native_#{System.pid()}_#{System.unique_integer([:positive])}"
    directory = Path.join(parent, name)
    File.mkdir!(directory)
    on_exit.(fn -> File.rm_rf!(directory) end)
    # It must not run as root.
    root? = System.cmd("id", ["-u"]) == {"0\n", 0}
    if root?, do: {_output, 0} = System.cmd("chown", ["nobody", directory])
    command = &command(root?, Path.join(programs, &1), &2)
    data = Path.join(directory, "data")
    options = ~w(--auth=trust --username=postgres --no-locale --encoding=UTF8 --no-sync)
    [program | arguments] = command.("initdb", options ++ ["--pgdata", data])
    {_output, 0} = System.cmd(program, arguments, cd: "/", stderr_to_stdout: true)
    port = free_port()

    settings = [
      "port=#{port}",
      "listen_addresses=127.0.0.1",
      "unix_socket_directories=#{directory}"
    ]

    settings = for setting <- settings, word <- ["-c", setting], do: word
    server = ["-c", @shell | command.("postgres", ["-D", data | settings])]
    caller = self()
    {:ok, owner} = Task.start_link(fn -> run(server, caller) end)

    receive do
      {__MODULE__, {:os_pid, shell}} -> on_exit.(fn -> stop!(owner, shell) end)
    after
      60_000 -> raise "PostgreSQL does not start"
    end

    [hostname: "127.0.0.1", port: port, username: "postgres", database: "postgres"]
  end

  # Owns the server, and tells its caller when it takes clients.
  defp run(server, caller) do
    port =
      Port.open({:spawn_executable, "/bin/sh"}, [
        :binary,
        :stderr_to_stdout,
        line: 1_000,
        cd: "/",
        args: server
      ])

    tell_when_ready(port, caller)
  end

  defp tell_when_ready(port, caller) do
    receive do
      {^port, {:data, {_complete_or_not, line}}} ->
        if line =~ "ready to accept connections",
          do: send(caller, {__MODULE__, Port.info(port, :os_pid)})

        tell_when_ready(port, caller)
    end
  end

  # The port closes with its owner, which may have ended before.
  defp stop!(owner, shell) do
    Process.unlink(owner)
    Process.exit(owner, :kill)
    true = PgliteEx.OperatingSystem.ended_within?(shell, 30)
  end

  defp command(root?, program, arguments) do
    if root?,
      do: ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", program | arguments],
      else: [program | arguments]
  end

  defp free_port do
    {:ok, socket} = :gen_tcp.listen(0, ip: {127, 0, 0, 1})
    {:ok, port} = :inet.port(socket)
    :gen_tcp.close(socket)
    port
  end

  defp version(directory) do
    {text, 0} = System.cmd(Path.join(directory, "postgres"), ["--version"])
    [version] = Regex.run(~r/\d+/, text)
    String.to_integer(version)
  end
end
