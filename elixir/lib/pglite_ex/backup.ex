defmodule PgliteEx.Backup do
  @moduledoc false
  # Backups of the shared cluster of a running server or of a branch, and restores into a directory.
  #
  # A backup is a request to the server's program, which writes the file itself. A restore is a run of
  # the program's command, because no server has the directory open.

  alias PgliteEx.{Branch, Error, Executable, Telemetry}

  @figures [:bytes, :files, :pages]

  @doc "See `PgliteEx.backup/3`."
  @spec backup(PgliteEx.server() | Branch.t(), Path.t(), keyword) ::
          {:ok, %{atom => non_neg_integer}} | {:error, Error.t()}
  def backup(origin, path, options) do
    options = Keyword.validate!(options, database: nil, username: nil, timeout: :infinity)
    path = Path.expand(path)
    %{name: name, mode: mode} = defaults = Branch.options(origin)

    request_options =
      [
        {"path", path},
        {"database", options[:database] || defaults.database},
        {"user", options[:username] || defaults.username}
      ] ++ Branch.frame_options(origin)

    span(:backup, %{server: name, path: path}, fn ->
      if mode == :shared,
        do: request(origin, request_options, options[:timeout]),
        else: {:error, no_cluster()}
    end)
  end

  defp request(server, options, timeout) do
    with {:ok, reply} <- PgliteEx.request(server, "backup", options, timeout) do
      reply = Map.new(reply)
      figures = for key <- @figures, value = reply["#{key}"], do: {key, String.to_integer(value)}
      {:ok, Map.new(figures)}
    end
  end

  @doc "See `PgliteEx.restore/3`."
  @spec restore(Path.t(), Path.t(), keyword) :: :ok | {:error, Error.t()}
  def restore(file, directory, options) do
    options = Keyword.validate!(options, executable: nil)
    {file, directory} = {Path.expand(file), Path.expand(directory)}

    span(:restore, %{path: file, directory: directory}, fn ->
      with {:ok, executable} <- Executable.find(options[:executable]),
           do: run(executable, ["restore", file, directory])
    end)
  end

  defp run(executable, arguments) do
    # Its log without what is no error.
    settings = [stderr_to_stdout: true, env: [{"PGLITE_PORT_LOG", "error"}]]

    case System.cmd(executable, arguments, settings) do
      {_output, 0} ->
        :ok

      {output, status} ->
        {:error, %Error{code: :restore_failed, message: message(String.trim(output), status)}}
    end
  rescue
    error in ErlangError ->
      message = "cannot start #{executable}: #{:file.format_error(error.original)}"
      {:error, %Error{code: error.original, message: message}}
  end

  defp message("", status), do: "pglite-port ended: exit status #{status}; it wrote nothing"
  defp message(output, _status), do: String.replace_prefix(output, "pglite-port: ", "")

  defp span(name, metadata, fun) do
    Telemetry.span([name], metadata, fn ->
      result = fun.()
      error = with {:error, error} <- result, do: error, else: (_done -> nil)
      {result, Map.put(metadata, :error, error)}
    end)
  end

  # `feature_not_supported`: it would be that of a shared cluster, which no client of the server has.
  defp no_cluster do
    message = "a server in mode :isolated has no cluster to back up; see PgliteEx.freeze/3"
    %Error{code: "0A000", message: message}
  end
end
