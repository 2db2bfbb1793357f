defmodule PgliteEx.Download do
  @moduledoc false
  # Fetches a file by `:httpc`, for the archive with the program (`PgliteEx.Archive`). It runs while
  # Mix compiles, when no package can be relied on.

  @redirects 5
  # Without a byte for so long, in milliseconds, the server is given up.
  @patience 60_000
  # A profile of its own, so that nobody else's options of `:httpc` change.
  @profile :pglite_ex
  # Where OTP is older than 25, and cannot find the operating system's certificates by itself.
  @certificates [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem"
  ]

  @doc """
  Writes what is at `url` (http or https) to the file `path`. A server over https has to have a
  certificate that the operating system trusts, or one of the file that `SSL_CERT_FILE` names.
  Proxies are taken from `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`.

  The options are `:patience`, in milliseconds without a byte, and `:limit`, the most bytes that are
  taken. The error is a sentence with the URL. What a download that failed leaves of the file is
  undefined.
  """
  @spec to_file(String.t(), Path.t(), keyword()) :: :ok | {:error, String.t()}
  def to_file(url, path, options \\ []) do
    with :ok <- start(),
         {:ok, file} <- open(path) do
      wanted = %{
        file: file,
        patience: Keyword.get(options, :patience, @patience),
        # Every number is less than an atom.
        limit: Keyword.get(options, :limit, :infinity)
      }

      try do
        follow(url, wanted, @redirects)
      after
        File.close(file)
      end
    end
  end

  defp start do
    # Since Elixir 1.15, Mix leaves out of the code path what the project does not depend on.
    if function_exported?(Mix, :ensure_application!, 1),
      do: for(application <- [:inets, :ssl], do: apply(Mix, :ensure_application!, [application]))

    {:ok, _started} = Application.ensure_all_started(:inets)
    {:ok, _started} = Application.ensure_all_started(:ssl)

    case :inets.start(:httpc, profile: @profile) do
      {:ok, _pid} -> :ok
      {:error, {:already_started, _pid}} -> :ok
    end

    # Hosts with IPv6 addresses only are found as well.
    :httpc.set_options([ipfamily: :inet6fb4] ++ proxies(), @profile)
  end

  defp proxies do
    not_for =
      for host <- String.split(variable("NO_PROXY"), [",", " "], trim: true),
          do: host |> String.replace_prefix(".", "*.") |> to_charlist()

    for {name, option} <- [{"HTTP_PROXY", :proxy}, {"HTTPS_PROXY", :https_proxy}],
        %URI{host: host, port: port} when is_binary(host) and is_integer(port) <- [proxy(name)],
        '*' not in not_for,
        do: {option, {{to_charlist(host), port}, not_for}}
  end

  # It is often written without a scheme.
  defp proxy(name) do
    text = variable(name)
    URI.parse(if text == "" or text =~ "://", do: text, else: "http://" <> text)
  end

  defp proxy_authentication(url) do
    with %URI{userinfo: info} when is_binary(info) <-
           proxy(if(secure?(url), do: "HTTPS_PROXY", else: "HTTP_PROXY")),
         [user, password] <- String.split(info, ":", parts: 2) do
      [proxy_auth: {to_charlist(URI.decode(user)), to_charlist(URI.decode(password))}]
    else
      _none -> []
    end
  end

  defp variable(name), do: System.get_env(name) || System.get_env(String.downcase(name)) || ""

  defp open(path) do
    with {:error, reason} <- File.open(path, [:write, :raw, :binary]),
         do: {:error, "#{path} cannot be written: #{:file.format_error(reason)}"}
  end

  defp follow(url, wanted, redirects) do
    case request(url, wanted) do
      {:redirect, _location} when redirects == 0 ->
        {:error, "#{url} leads from one address to the next, more than #{@redirects} times"}

      {:redirect, location} ->
        next = url |> URI.merge(location) |> URI.to_string()

        # Who listens on the way could answer instead.
        if secure?(url) and not secure?(next),
          do: {:error, "#{url} leads to #{next}, which is not encrypted"},
          else: follow(next, wanted, redirects - 1)

      result ->
        result
    end
  end

  defp request(url, wanted) do
    with {:ok, tls} <- tls(url) do
      http = [autoredirect: false, connect_timeout: wanted.patience] ++ proxy_authentication(url)
      # A chunk at a time, so that a fast server does not fill the mailbox.
      options = [sync: false, stream: {:self, :once}, body_format: :binary]
      # A server may close a connection just when it is used again, after a redirect.
      headers = [{~c"user-agent", ~c"pglite_ex"}, {~c"connection", ~c"close"}]

      case :httpc.request(:get, {to_charlist(url), headers}, http ++ tls, options, @profile) do
        {:ok, request} -> receive_start(request, url, wanted)
        {:error, reason} -> failed(url, reason)
      end
    end
  end

  defp receive_start(request, url, wanted) do
    receive do
      {:http, {^request, :stream_start, headers, handler}} ->
        receive_body(request, handler, url, wanted, {0, length_of(headers)})

      {:http, {^request, {{_version, status, _reason}, headers, _body}}}
      when status in [301, 302, 303, 307, 308] ->
        case List.keyfind(headers, ~c"location", 0) do
          {_name, location} -> {:redirect, List.to_string(location)}
          nil -> {:error, "#{url} answers #{status} without saying where to go"}
        end

      {:http, {^request, {{_version, status, reason}, _headers, _body}}} ->
        {:error, "#{url} answers #{status} #{reason}"}

      {:http, {^request, {:error, reason}}} ->
        failed(url, reason)
    after
      wanted.patience -> given_up(request, url, wanted.patience)
    end
  end

  defp receive_body(request, handler, url, wanted, {got, all}) do
    :httpc.stream_next(handler)

    receive do
      {:http, {^request, :stream, chunk}} ->
        count = {got + byte_size(chunk), all}

        with :ok <- keep(chunk, count, url, wanted),
             do: receive_body(request, handler, url, wanted, count),
             else: (error -> cancel(request, error))

      {:http, {^request, :stream_end, _headers}} when all in [nil, got] ->
        :ok

      # It ends early, or with an error.
      {:http, {^request, _end}} ->
        cut_off(url, got, all)

      {:http, {^request, :stream_end, _headers}} ->
        cut_off(url, got, all)
    after
      wanted.patience -> given_up(request, url, wanted.patience)
    end
  end

  defp keep(_chunk, {got, _all}, url, %{limit: limit}) when got > limit,
    do: {:error, "#{url} has more than #{limit} bytes"}

  defp keep(chunk, _count, url, wanted) do
    with {:error, reason} <- :file.write(wanted.file, chunk),
         do: {:error, "what #{url} sends cannot be kept: #{:file.format_error(reason)}"}
  end

  defp cut_off(url, got, all),
    do:
      {:error, "#{url} was cut off after #{got} of #{all || "unknown many"} bytes; try it again"}

  defp length_of(headers) do
    with {_name, length} <- List.keyfind(headers, ~c"content-length", 0),
         {length, ""} <- length |> List.to_string() |> Integer.parse(),
         do: length,
         else: (_no_length -> nil)
  end

  defp given_up(request, url, patience),
    do: cancel(request, {:error, "#{url} has sent nothing for #{patience / 1000} seconds"})

  defp cancel(request, error) do
    :httpc.cancel_request(request, @profile)
    error
  end

  defp failed(url, {:failed_connect, details}) do
    reason = List.last(for {_family, _options, reason} <- details, do: reason)
    {:error, "#{url} cannot be reached: #{explain(reason)}"}
  end

  defp failed(url, reason), do: {:error, "#{url} cannot be fetched: #{explain(reason)}"}

  defp explain({:tls_alert, {_alert, text}}) do
    [line | _state] = text |> to_string() |> String.split("\n")

    "TLS: #{line}; a certificate authority that the operating system does not know can be named by " <>
      "SSL_CERT_FILE"
  end

  defp explain({:tls, reason, _more}), do: explain(reason)
  defp explain({:error, reason}), do: explain(reason)

  defp explain(reason) when is_atom(reason) do
    case :inet.format_error(reason) do
      ~c"unknown POSIX error" ++ _rest -> inspect(reason)
      text -> "#{text}"
    end
  end

  defp explain(reason), do: inspect(reason)

  defp secure?(url), do: URI.parse(url).scheme == "https"

  defp tls(url) do
    with true <- secure?(url),
         {:ok, certificates} <- certificates() do
      match = :public_key.pkix_verify_hostname_match_fun(:https)
      verify = [verify: :verify_peer, depth: 4, log_level: :none]
      {:ok, [ssl: verify ++ [customize_hostname_check: [match_fun: match]] ++ certificates]}
    else
      false -> {:ok, []}
      error -> error
    end
  end

  defp certificates do
    case System.get_env("SSL_CERT_FILE", "") do
      "" ->
        of_operating_system()

      file ->
        if File.regular?(file),
          do: {:ok, [cacertfile: file]},
          else: {:error, "SSL_CERT_FILE is #{file}, which is no file with certificates"}
    end
  end

  defp of_operating_system do
    {:module, :public_key} = Code.ensure_loaded(:public_key)

    with true <- function_exported?(:public_key, :cacerts_load, 0),
         :ok <- apply(:public_key, :cacerts_load, []) do
      {:ok, [cacerts: apply(:public_key, :cacerts_get, [])]}
    else
      _older_or_none ->
        case Enum.find(@certificates, &File.regular?/1) do
          nil ->
            {:error,
             "there are no certificates to verify a server with: install ca-certificates, or name " <>
               "a file with some in SSL_CERT_FILE"}

          file ->
            {:ok, [cacertfile: file]}
        end
    end
  end
end
