defmodule PgliteEx.OperatingSystem do
  @moduledoc "What tests ask of the operating system about processes, and do to them."

  @doc "The process id of a server's program."
  def program(server) do
    server
    |> PgliteEx.Server.child(PgliteEx.WasmPort)
    |> PgliteEx.WasmPort.hello()
    |> Map.get("pid")
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
end
