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

  The error is a sentence with the URL. What a download that failed leaves of the file is undefined.
  """
  @spec to_file(String.t(), Path.t(), timeout()) :: :ok | {:error, String.t()}
  def to_file(url, path, patience \\ @patience) do
    with :ok <- start(),
         {:ok, file} <- open(path) do
      try do
        follow(url, file, patience, @redirects)
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
      {:ok, _pid} -> :httpc.set_options(proxies(), @profile)
      {:error, {:already_started, _pid}} -> :ok
    end
  end

  defp proxies do
    not_for =
      for host <- String.split(variable("NO_PROXY"), ",", trim: true), do: to_charlist(host)

    for {name, option} <- [{"HTTP_PROXY", :proxy}, {"HTTPS_PROXY", :https_proxy}],
        %URI{host: host, port: port} when is_binary(host) and is_integer(port) <-
          [URI.parse(variable(name))],
        do: {option, {{to_charlist(host), port}, not_for}}
  end

  defp variable(name), do: System.get_env(name) || System.get_env(String.downcase(name)) || ""

  defp open(path) do
    with {:error, reason} <- File.open(path, [:write, :raw, :binary]),
         do: {:error, "#{path} cannot be written: #{:file.format_error(reason)}"}
  end

  defp follow(url, file, patience, redirects) do
    case request(url, file, patience) do
      {:redirect, _location} when redirects == 0 ->
        {:error, "#{url} leads from one address to the next, more than #{@redirects} times"}

      {:redirect, location} ->
        next = url |> URI.merge(location) |> URI.to_string()

        # Who listens on the way could answer instead.
        if secure?(url) and not secure?(next),
          do: {:error, "#{url} leads to #{next}, which is not encrypted"},
          else: follow(next, file, patience, redirects - 1)

      result ->
        result
    end
  end

  defp request(url, file, patience) do
    http = [autoredirect: false, connect_timeout: patience] ++ tls(url)
    # A chunk at a time, so that a fast server does not fill the mailbox.
    options = [sync: false, stream: {:self, :once}, body_format: :binary]
    headers = [{~c"user-agent", ~c"pglite_ex"}]

    case :httpc.request(:get, {to_charlist(url), headers}, http, options, @profile) do
      {:ok, request} -> receive_start(request, url, file, patience)
      {:error, reason} -> failed(url, reason)
    end
  end

  defp receive_start(request, url, file, patience) do
    receive do
      {:http, {^request, :stream_start, headers, handler}} ->
        receive_body(request, handler, url, file, patience, {0, length_of(headers)})

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
      patience -> given_up(request, url, patience)
    end
  end

  defp receive_body(request, handler, url, file, patience, {got, all}) do
    :httpc.stream_next(handler)

    receive do
      {:http, {^request, :stream, chunk}} ->
        case :file.write(file, chunk) do
          :ok ->
            count = {got + byte_size(chunk), all}
            receive_body(request, handler, url, file, patience, count)

          {:error, reason} ->
            :httpc.cancel_request(request, @profile)
            {:error, "what #{url} sends cannot be kept: #{:file.format_error(reason)}"}
        end

      {:http, {^request, :stream_end, _headers}} when all in [nil, got] ->
        :ok

      {:http, {^request, :stream_end, _headers}} ->
        {:error, "#{url} was cut off after #{got} of #{all} bytes; try it again"}

      {:http, {^request, {:error, _closed}}} ->
        {:error,
         "#{url} was cut off after #{got} of #{all || "unknown many"} bytes; try it again"}
    after
      patience -> given_up(request, url, patience)
    end
  end

  defp length_of(headers) do
    with {_name, length} <- List.keyfind(headers, ~c"content-length", 0),
         {length, ""} <- length |> List.to_string() |> Integer.parse(),
         do: length,
         else: (_no_length -> nil)
  end

  defp given_up(request, url, patience) do
    :httpc.cancel_request(request, @profile)
    {:error, "#{url} has sent nothing for #{div(patience, 1000)} seconds"}
  end

  defp failed(url, {:failed_connect, details}) do
    reason =
      case List.keyfind(details, :inet, 0) || List.keyfind(details, :inet6, 0) do
        {_family, _options, {:tls_alert, {_alert, text}}} -> "TLS: #{text}"
        {_family, _options, reason} -> explain(reason)
        nil -> inspect(details)
      end

    {:error, "#{url} cannot be reached: #{reason}"}
  end

  defp failed(url, reason), do: {:error, "#{url} cannot be fetched: #{explain(reason)}"}

  defp explain(reason) when is_atom(reason) do
    case :inet.format_error(reason) do
      ~c"unknown POSIX error" ++ _rest -> inspect(reason)
      text -> "#{text}"
    end
  end

  defp explain(reason), do: inspect(reason)

  defp secure?(url), do: URI.parse(url).scheme == "https"

  defp tls(url) do
    if secure?(url) do
      match = :public_key.pkix_verify_hostname_match_fun(:https)

      [
        ssl:
          [verify: :verify_peer, depth: 4, customize_hostname_check: [match_fun: match]] ++
            certificates()
      ]
    else
      []
    end
  end

  defp certificates do
    given = System.get_env("SSL_CERT_FILE")

    cond do
      given != nil ->
        [cacertfile: given]

      function_exported?(:public_key, :cacerts_get, 0) ->
        [cacerts: apply(:public_key, :cacerts_get, [])]

      file = Enum.find(@certificates, &File.regular?/1) ->
        [cacertfile: file]

      true ->
        []
    end
  end
end
