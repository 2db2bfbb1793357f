defmodule PgliteEx.Stderr do
  @moduledoc false
  # The last lines that a program wrote to its standard error.
  #
  # A port carries standard input and output only, and with `{:packet, 4}` its output cannot take
  # in standard error. So there is a second port, whose program is `cat`. The program in question
  # opens the pipe that is `cat`'s standard output as its standard error: on Linux that is
  # `/proc/PID/fd/1` (proc(5)). No file is involved, so none is left behind, however the VM ends.
  #
  # What is written to `cat` comes back behind everything that was in the pipe before. With a mark
  # that is written to it, it is known that `cat` runs, and that all of a dead program's lines have
  # been read.
  #
  # A plain value, kept in the state of the process that opened it.

  alias PgliteEx.Error

  @enforce_keys [:port, :mark]
  defstruct [:port, :mark, path: nil, text: <<>>]

  @type t :: %__MODULE__{
          port: port,
          # A line that no program writes.
          mark: String.t(),
          # What the program has to open; `nil` until it can.
          path: Path.t() | nil,
          # The end of what was written.
          text: binary
        }

  @kept_bytes 8_192
  # How long the mark may take to come back, in milliseconds.
  @mark_timeout 1_000

  @doc "Starts to open the pipe, which belongs to the calling process."
  @spec open() :: t
  def open do
    mark = Base.encode16(:crypto.strong_rand_bytes(16)) <> "\n"
    settings = [:binary, :hide, :use_stdio, args: ["-c", "exec cat 2>/dev/null"]]
    stderr = %__MODULE__{port: Port.open({:spawn_executable, "/bin/sh"}, settings), mark: mark}
    send_mark(stderr)
    stderr
  end

  @doc """
  Takes a message of the owner's mailbox, or answers `:unknown` when it is not about this pipe.

  `:ready` comes once, when the program can open `path`.
  """
  @spec handle(t, term) :: {:ok, t} | {:ready, t} | {:error, Error.t()} | :unknown
  def handle(%__MODULE__{port: port, path: nil} = stderr, {port, {:data, bytes}}) do
    stderr = append(stderr, bytes)

    with true <- marked?(stderr), {:os_pid, os_pid} <- Port.info(port, :os_pid) do
      {:ready, %{stderr | path: "/proc/#{os_pid}/fd/1", text: <<>>}}
    else
      _not_yet -> {:ok, stderr}
    end
  end

  def handle(%__MODULE__{port: port} = stderr, {port, {:data, bytes}}),
    do: {:ok, append(stderr, bytes)}

  def handle(%__MODULE__{port: port}, {:EXIT, port, reason}) do
    message =
      "the process that collects the standard error of pglite-port ended: #{inspect(reason)}"

    {:error, %Error{code: :program_exited, message: message}}
  end

  def handle(%__MODULE__{}, _message), do: :unknown

  @doc """
  The last lines that a program wrote, which has ended: at most `count` of them, oldest first.
  """
  @spec last_lines(t, pos_integer) :: [String.t()]
  def last_lines(%__MODULE__{mark: mark} = stderr, count) do
    timer = Process.send_after(self(), {__MODULE__, mark}, @mark_timeout)
    %{text: text} = if send_mark(stderr), do: receive_mark(stderr), else: stderr
    Process.cancel_timer(timer)

    text
    |> String.replace(mark, "")
    |> String.split("\n", trim: true)
    |> Enum.take(-count)
    |> Enum.map(&if String.valid?(&1), do: &1, else: inspect(&1))
  end

  @doc "Closes the pipe."
  @spec close(t) :: :ok
  def close(%__MODULE__{port: port}) do
    Port.close(port)
    :ok
  rescue
    # It has closed by itself.
    ArgumentError -> :ok
  end

  defp send_mark(%{port: port, mark: mark}) do
    Port.command(port, mark, [:nosuspend])
  rescue
    # The port has closed; its exit message says so.
    ArgumentError -> false
  end

  defp receive_mark(%{port: port, mark: mark} = stderr) do
    receive do
      {^port, {:data, bytes}} ->
        stderr = append(stderr, bytes)
        if marked?(stderr), do: stderr, else: receive_mark(stderr)

      {:EXIT, ^port, _reason} ->
        stderr

      {__MODULE__, ^mark} ->
        stderr
    end
  end

  defp marked?(%{text: text, mark: mark}), do: String.ends_with?(text, mark)

  defp append(%{text: text} = stderr, bytes) do
    text = text <> bytes
    excess = max(byte_size(text) - @kept_bytes, 0)
    # Copied, because a part of a binary keeps all of it in memory.
    %{stderr | text: text |> binary_part(excess, byte_size(text) - excess) |> :binary.copy()}
  end
end
