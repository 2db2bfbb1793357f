defmodule PgliteEx.OptionValue do
  @moduledoc false
  # The values that the options of a server may have, one by one. What they have to do with each other is the matter of
  # `PgliteEx.Options`.

  alias PgliteEx.{Limits, Options, Password}

  # Those that may be nil, which is as if they had not been given.
  @optional [
    :database,
    :auth,
    :password,
    :ssl,
    :after_start,
    :on_data_loss,
    :template,
    :warm,
    :data,
    :max_connections,
    :memory_limit,
    :cluster_memory_limit,
    :cluster_disk_limit,
    :metrics,
    :executable,
    :pglite_dir,
    :cache_dir,
    :icu_data,
    :log_level
  ]

  # From the most to the least important.
  @log_levels [:error, :warn, :info, :debug, :trace]

  # `sun_path` of a unix socket's address holds 108 bytes, with a NUL at the end (unix(7)). The socket for
  # connections of `after_start:` may have a number with one digit more.
  @longest_local_path 106

  @doc "The levels of the log, from the most to the least important."
  @spec log_levels() :: [atom]
  def log_levels, do: @log_levels

  @doc "The value of an option as it is kept. Raises `ArgumentError` for one that is not allowed."
  @spec validate!(atom, term) :: term
  def validate!(:name, name) when is_atom(name), do: name
  def validate!(:name, {:global, _term} = name), do: name
  def validate!(:name, {:via, module, _term} = name) when is_atom(module), do: name

  def validate!(:name, name),
    do: refuse!(:name, name, "an atom, {:global, term} or {:via, module, term}")

  def validate!(:mode, mode) when mode in [:shared, :isolated], do: mode
  def validate!(:mode, mode), do: refuse!(:mode, mode, ":shared or :isolated")

  def validate!(key, nil) when key in @optional, do: nil

  def validate!(key, value) when key in [:database, :username, :template] do
    if is_binary(value) and value != "" and String.valid?(value) and not (value =~ <<0>>),
      do: value,
      else: refuse!(key, value, "a string that is not empty and has no NUL in it")
  end

  def validate!(:auth, auth) when auth in [:trust, :scram_sha_256], do: auth
  def validate!(:auth, path) when is_binary(path) and path != "", do: Path.expand(path)

  def validate!(:auth, auth),
    do: refuse!(:auth, auth, ":trust, :scram_sha_256 or a path as a string")

  def validate!(:password, given) do
    with :error <- Password.hide(given) do
      raise ArgumentError,
            "PgliteEx option password: it takes a string that is not empty and has no line feed and no NUL in it, " <>
              "{:system, \"VARIABLE\"}, or a function without arguments"
    else
      {:ok, password} -> password
    end
  end

  def validate!(:ssl, function) when is_function(function, 0), do: function

  def validate!(:ssl, given) do
    if Keyword.keyword?(given) and
         Enum.any?(
           [:certfile, :cert, :certs_keys, :sni_fun, :sni_hosts],
           &Keyword.has_key?(given, &1)
         ) do
      for key <- [:certfile, :keyfile, :cacertfile], path = given[key] do
        unless File.regular?(path),
          do: raise(ArgumentError, "PgliteEx option ssl: there is no file #{path} (#{key})")
      end

      fn -> given end
    else
      raise ArgumentError,
            "PgliteEx option ssl: it takes a keyword list of options of :ssl with a certificate, such as " <>
              "[certfile: \"server.pem\", keyfile: \"server.key\"]"
    end
  end

  def validate!(:trust_everyone_who_can_connect, consent) when is_boolean(consent), do: consent

  def validate!(:trust_everyone_who_can_connect, consent),
    do: refuse!(:trust_everyone_who_can_connect, consent, "true or false")

  def validate!(:listen, {:local, path}) when is_binary(path) and path != "" do
    path = path |> socket_path() |> Path.expand()

    if byte_size(path) <= @longest_local_path,
      do: {:local, path},
      else:
        refuse!(:listen, {:local, path}, "a socket path of at most #{@longest_local_path} bytes")
  end

  def validate!(key, {host, port} = given)
      when key in [:listen, :metrics] and is_integer(port) and port in 0..65_535 do
    case address(host) do
      {:ok, address} ->
        {address, port}

      {:error, _posix} ->
        refuse!(key, given, "a host that has an address, such as \"127.0.0.1\"")
    end
  end

  def validate!(:listen, listen),
    do: refuse!(:listen, listen, "{host, port} with a port of 0 to 65535, or {:local, path}")

  def validate!(:send_timeout, :infinity), do: :infinity
  def validate!(:send_timeout, ms) when is_integer(ms) and ms > 0, do: ms

  def validate!(:send_timeout, ms),
    do: refuse!(:send_timeout, ms, "a number of milliseconds, 1 or more, or :infinity")

  def validate!(:after_start, function) when is_function(function, 1), do: function

  def validate!(:after_start, {module, name, arguments} = function)
      when is_atom(module) and is_atom(name) and is_list(arguments),
      do: function

  def validate!(:after_start, function) do
    allowed = "a function of the connection options, or {module, function, arguments}"
    refuse!(:after_start, function, allowed)
  end

  def validate!(:after_start_timeout, :infinity), do: :infinity
  def validate!(:after_start_timeout, ms) when is_integer(ms) and ms > 0, do: ms

  def validate!(:after_start_timeout, ms),
    do: refuse!(:after_start_timeout, ms, "a number of milliseconds, 1 or more, or :infinity")

  def validate!(:on_data_loss, action) when action in [:restart, :stop], do: action
  def validate!(:on_data_loss, action), do: refuse!(:on_data_loss, action, ":restart or :stop")

  def validate!(:shutdown_timeout, ms) when is_integer(ms) and ms >= 0, do: ms

  def validate!(:shutdown_timeout, ms),
    do: refuse!(:shutdown_timeout, ms, "a number of milliseconds, 0 or more")

  def validate!(:warm, count) when is_integer(count) and count >= 0, do: count
  def validate!(:warm, count), do: refuse!(:warm, count, "a number of clones, 0 or more")

  def validate!(:max_connections, count) when is_integer(count) and count > 0, do: count

  def validate!(:max_connections, count),
    do: refuse!(:max_connections, count, "a number of connections, 1 or more")

  def validate!(:memory_limit, "none"), do: "none"

  def validate!(key, size)
      when key in [:memory_limit, :cluster_memory_limit, :cluster_disk_limit] do
    if Limits.size?(size), do: size, else: refuse!(key, size, Limits.allowed())
  end

  def validate!(:metrics, metrics),
    do: refuse!(:metrics, metrics, "{host, port} with a port of 0 to 65535")

  def validate!(:settings, settings) do
    if Keyword.keyword?(settings) and Enum.all?(Keyword.values(settings), &setting?/1),
      do: settings,
      else: refuse!(:settings, settings, "a keyword list of strings, numbers and booleans")
  end

  def validate!(key, path)
      when key in [:data, :executable, :pglite_dir, :cache_dir, :icu_data] do
    if is_binary(path) and path != "",
      do: Path.expand(path),
      else: refuse!(key, path, "a path as a string")
  end

  def validate!(:extensions, paths) do
    if is_list(paths) and Enum.all?(paths, &(is_binary(&1) and &1 != "")),
      do: Enum.map(paths, &Path.expand/1),
      else: refuse!(:extensions, paths, "a list of paths as strings")
  end

  def validate!(:log_level, level) when level in @log_levels, do: level

  def validate!(:log_level, level),
    do: refuse!(:log_level, level, Enum.map_join(@log_levels, ", ", &inspect/1))

  def validate!(key, _value) do
    known =
      Options.__struct__() |> Map.from_struct() |> Map.keys() |> Enum.map_join(", ", &inspect/1)

    raise ArgumentError, "PgliteEx has no option #{inspect(key)}; it has #{known}"
  end

  defp setting?(value) when is_binary(value), do: String.valid?(value) and not (value =~ <<0>>)
  defp setting?(value), do: is_number(value) or is_boolean(value)

  defp address(host) when is_tuple(host), do: :inet.getaddr(host, family(host))

  defp address(host) when is_binary(host) do
    host = String.to_charlist(host)
    with {:error, _posix} <- :inet.getaddr(host, :inet), do: :inet.getaddr(host, :inet6)
  end

  defp address(_host), do: {:error, :einval}

  defp family(address), do: if(tuple_size(address) == 8, do: :inet6, else: :inet)

  defp socket_path(path) do
    if Path.basename(path) =~ ~r/^\.s\.PGSQL\.\d+$/,
      do: path,
      else: Path.join(path, ".s.PGSQL.5432")
  end

  @doc "Refuses a value, with what is allowed instead."
  @spec refuse!(atom, term, String.t()) :: no_return
  def refuse!(key, value, allowed) do
    raise ArgumentError,
          "PgliteEx option #{key}: #{inspect(value)} is not allowed; it takes #{allowed}"
  end
end
