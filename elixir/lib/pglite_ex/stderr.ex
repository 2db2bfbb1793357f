defmodule PgliteEx.Stderr do
  @moduledoc """
  The last lines that a program wrote to its standard error.

  A port carries standard input and output only, and with `{:packet, 4}` its output cannot take
  in standard error. So the program is started as `/bin/sh -c 'exec "$0" "$@" 2>>"$FILE"'`:
  `exec` keeps the process id and the exit status, and the file takes what is written.

  As soon as the program runs, the file's name is removed. The file itself lives on as long as
  the program or this VM has it open, and takes its space with it when both are gone, also after
  a SIGKILL.
  """

  @enforce_keys [:path, :device]
  defstruct [:path, :device]

  @type t :: %__MODULE__{path: Path.t(), device: :file.fd()}

  @kept_bytes 8_192
  @largest_bytes 1_048_576

  @doc "Creates the file, readable by this user only. It belongs to the calling process."
  @spec open() :: {:ok, t} | {:error, File.posix()}
  def open do
    name = "pglite_ex-#{Base.encode16(:crypto.strong_rand_bytes(12), case: :lower)}.stderr"
    path = Path.join(System.tmp_dir!(), name)

    with {:ok, device} <- :file.open(path, [:read, :write, :exclusive, :raw, :binary]) do
      File.chmod(path, 0o600)
      {:ok, %__MODULE__{path: path, device: device}}
    end
  end

  @doc "Removes the file's name; to be called when the program has opened it."
  @spec unlink(t) :: :ok
  def unlink(%__MODULE__{path: path}) do
    _ = File.rm(path)
    :ok
  end

  @doc "Empties a file that has grown over a megabyte, so that no log fills the disk."
  @spec trim(t) :: :ok
  def trim(%__MODULE__{device: device}) do
    with {:ok, size} when size > @largest_bytes <- :file.position(device, :eof),
         {:ok, 0} <- :file.position(device, 0) do
      # The program writes with O_APPEND, so its next line starts at the new end.
      :file.truncate(device)
    end

    :ok
  end

  @doc "The last lines written, at most `count` of them, oldest first."
  @spec last_lines(t, pos_integer) :: [String.t()]
  def last_lines(%__MODULE__{device: device}, count) do
    with {:ok, size} <- :file.position(device, :eof),
         start = max(size - @kept_bytes, 0),
         {:ok, text} <- :file.pread(device, start, @kept_bytes) do
      text |> String.split("\n", trim: true) |> Enum.take(-count)
    else
      _empty_or_unreadable -> []
    end
  end
end
