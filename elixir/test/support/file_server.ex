defmodule PgliteEx.FileServer do
  @moduledoc "A web server for tests of downloads: it answers each path in its own good or bad way."

  @doc """
  Starts it for the test and returns its address, such as `http://localhost:1234`. `answers` is a map of
  paths to a body, `{:cut, body}` (only half of it comes), `{:redirect, url}`, a status, or `:silence`.
  With `:tls`, options of `:ssl.listen/2`, it speaks https.
  """
  def start!(answers, options \\ []) do
    transport = if options[:tls], do: :ssl, else: :gen_tcp
    own = [:binary, active: false, packet: :http_bin, reuseaddr: true, ip: {127, 0, 0, 1}]
    {:ok, socket} = transport.listen(0, own ++ Keyword.get(options, :tls, []))

    ExUnit.Callbacks.start_supervised!(
      {Task, fn -> accept(transport, socket, answers) end},
      id: make_ref()
    )

    {:ok, {_address, port}} =
      if options[:tls], do: :ssl.sockname(socket), else: :inet.sockname(socket)

    "#{if options[:tls], do: "https", else: "http"}://localhost:#{port}"
  end

  defp accept(:gen_tcp, listener, answers) do
    {:ok, socket} = :gen_tcp.accept(listener)
    serve(:gen_tcp, socket, answers)
    accept(:gen_tcp, listener, answers)
  end

  defp accept(:ssl, listener, answers) do
    {:ok, socket} = :ssl.transport_accept(listener)
    # A client that does not trust the certificate ends the handshake.
    with {:ok, socket} <- :ssl.handshake(socket), do: serve(:ssl, socket, answers)
    accept(:ssl, listener, answers)
  end

  defp serve(transport, socket, answers) do
    {:ok, {:http_request, :GET, {:abs_path, path}, _version}} = transport.recv(socket, 0)
    skip_headers(transport, socket)

    case Map.get(answers, path, 404) do
      :silence -> transport.recv(socket, 0)
      answer -> transport.send(socket, response(answer))
    end

    transport.close(socket)
  end

  defp skip_headers(transport, socket) do
    case transport.recv(socket, 0) do
      {:ok, :http_eoh} -> :ok
      {:ok, _header} -> skip_headers(transport, socket)
    end
  end

  defp response({:cut, body}),
    do: [head(200, body), binary_part(body, 0, div(byte_size(body), 2))]

  defp response({:redirect, url}),
    do: "HTTP/1.1 302 Found\r\nlocation: #{url}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"

  defp response(status) when is_integer(status), do: head(status, "")
  defp response(body), do: [head(200, body), body]

  defp head(status, body) do
    "HTTP/1.1 #{status} Whatever\r\ncontent-length: #{byte_size(body)}\r\nconnection: close\r\n\r\n"
  end
end
