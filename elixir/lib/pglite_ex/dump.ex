defmodule PgliteEx.Dump do
  @moduledoc false
  # Dumps of the shared cluster of a running server or of a branch, and SQL files that are run in one.
  #
  # Both are requests to the server's program, which reads and writes the file itself.

  alias PgliteEx.{Branch, Error}

  @doc "See `PgliteEx.dump/3`."
  @spec dump(PgliteEx.server() | Branch.t(), Path.t(), keyword) ::
          {:ok, %{bytes: non_neg_integer}} | {:error, Error.t()}
  def dump(origin, path, options) do
    options = validate!(options, options: [])

    with :ok <- one_line_each(options[:options]),
         request_options = [{"options", Enum.join(options[:options], "\n")}],
         {:ok, reply} <- request(origin, "dump", path, request_options, options) do
      {:ok, %{bytes: figure(reply, "bytes")}}
    end
  end

  @doc "See `PgliteEx.load/3`."
  @spec load(PgliteEx.server() | Branch.t(), Path.t(), keyword) ::
          {:ok, %{statements: non_neg_integer}} | {:error, Error.t()}
  def load(origin, path, options) do
    options = validate!(options, transaction: true)
    request_options = [{"single_transaction", "#{options[:transaction] == true}"}]

    with {:ok, reply} <- request(origin, "run", path, request_options, options) do
      {:ok, %{statements: figure(reply, "statements")}}
    end
  end

  defp validate!(options, own) do
    Keyword.validate!(options, own ++ [database: nil, username: nil, timeout: :infinity])
  end

  # The program gets them in lines.
  defp one_line_each(options) do
    if Enum.any?(options, &String.contains?(&1, "\n")) do
      message =
        "an option of pg_dump has a line break: write the name as a pattern with a dot there"

      {:error, %Error{code: :invalid_options, message: message}}
    else
      :ok
    end
  end

  defp request(origin, verb, path, request_options, options) do
    %{mode: mode} = defaults = Branch.options(origin)

    request_options =
      [
        {"path", Path.expand(path)},
        {"database", options[:database] || defaults.database},
        {"user", options[:username] || defaults.username}
      ] ++ request_options ++ Branch.frame_options(origin)

    if mode == :shared,
      do: PgliteEx.request(origin, verb, request_options, options[:timeout]),
      else: {:error, no_cluster()}
  end

  defp figure(reply, key), do: reply |> Map.new() |> Map.fetch!(key) |> String.to_integer()

  # `feature_not_supported`: it would be that of a shared cluster, which no client of the server has.
  defp no_cluster do
    message = "a server in mode :isolated has no cluster to dump or to load into"
    %Error{code: "0A000", message: message}
  end
end
