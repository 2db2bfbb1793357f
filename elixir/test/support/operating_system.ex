defmodule PgliteEx.OperatingSystem do
  @moduledoc "What tests ask of the operating system about processes, and do to them."

  alias PgliteEx.{Server, WasmPort}

  @doc "The process id of a server's program."
  def program(server) do
    :ok = PgliteEx.await_ready(server, 60_000)
    {:ok, %{"pid" => os_pid}} = server |> Server.child(WasmPort) |> WasmPort.hello()
    os_pid
  end

  @doc """
  Kills a server's program, and returns when the server has noticed: who asks it for its program then
  waits for the next one.
  """
  def kill_program!(server) do
    os_pid = program(server)
    monitor = server |> Server.child(WasmPort) |> Process.monitor()
    signal(os_pid, :KILL)

    receive do
      {:DOWN, ^monitor, :process, _wasm_port, _reason} -> :ok
    after
      10_000 -> raise "the end of the program was not noticed"
    end
  end

  @doc "Sends a signal, such as `:KILL`."
  def signal(os_pid, signal) do
    {_output, 0} = System.cmd("kill", ["-#{signal}", os_pid])
    :ok
  end

  @doc "Waits until a process has ended; false when it is still there after `seconds`."
  def ended_within?(os_pid, seconds) do
    # tail watches the process; nothing is ever written to /dev/null.
    command = ["#{seconds}", "tail", "--pid=#{os_pid}", "-s", "0.02", "-f", "/dev/null"]
    {_output, status} = System.cmd("timeout", command)
    status == 0
  end

  @doc "Whether a process has ended without anybody having asked for its exit status."
  def zombie?(os_pid) do
    case File.read("/proc/#{os_pid}/stat") do
      {:ok, stat} -> stat |> String.split(") ") |> List.last() |> String.starts_with?("Z")
      {:error, :enoent} -> false
    end
  end

  @doc """
  Starts a VM that runs `code`, with this library; returns the port with its output, in lines.

  Options: `:env`, as for `Port.open/2`.
  """
  def start_vm!(code, options \\ []) do
    ebin = Path.join(:code.lib_dir(:pglite_ex), "ebin")

    Port.open({:spawn_executable, System.find_executable("elixir")}, [
      :binary,
      :exit_status,
      :stderr_to_stdout,
      line: 1_000,
      env: Keyword.get(options, :env, []),
      args: ["-pa", ebin, "-e", code]
    ])
  end

  @doc "Waits for a line of output that begins with `start`, and returns the rest of it."
  def await_line!(port, start) do
    receive do
      {^port, {:data, {_complete_or_not, line}}} ->
        if String.starts_with?(line, start),
          do: String.replace_prefix(line, start, ""),
          else: await_line!(port, start)

      {^port, {:exit_status, status}} ->
        raise "the process has ended with status #{status}"
    after
      30_000 -> raise "no line begins with #{inspect(start)}"
    end
  end
end
