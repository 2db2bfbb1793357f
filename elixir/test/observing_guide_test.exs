defmodule PgliteEx.ObservingGuideTest do
  @moduledoc "The code of the guide \"Observing a server\", with stand-ins for the packages of OpenTelemetry."
  use ExUnit.Case, async: false

  alias PgliteEx.{Error, Servers}

  # They record their calls for the test, which runs everything that is traced.
  for {module, functions} <- [
        {OpentelemetryTelemetry,
         start_telemetry_span: 4, set_current_telemetry_span: 2, end_telemetry_span: 2},
        {OpenTelemetry, status: 2},
        {OpenTelemetry.Span, set_attributes: 2, set_status: 2}
      ] do
    contents =
      for {name, arity} <- functions do
        arguments = Macro.generate_arguments(arity, __MODULE__)

        quote do
          def unquote(name)(unquote_splicing(arguments)) do
            # A server outlives the test by a moment.
            test = Process.whereis(PgliteEx.ObservingGuideTest)
            if test, do: send(test, {unquote(name), [unquote_splicing(arguments)]})
            unquote(name)
          end
        end
      end

    Module.create(module, contents, Macro.Env.location(__ENV__))
  end

  test "the handler for OpenTelemetry begins and ends a span of each kind of end" do
    Process.register(self(), __MODULE__)
    guide = File.read!(Path.join(__DIR__, "../guides/observing.md"))

    [code] =
      Regex.run(~r/```elixir\n(defmodule MyApp.PgliteTracing .*?)```/s, guide,
        capture: :all_but_first
      )

    [{tracing, _code}] = Code.compile_string(code)

    server = Servers.start!(name: :traced)
    :ok = tracing.attach()
    on_exit(fn -> :telemetry.detach(tracing) end)

    assert {:error, %Error{}} = PgliteEx.request(server, "dance")
    assert_received {:start_telemetry_span, [^tracing, "pglite_ex.request", metadata, options]}
    assert %{telemetry_span_context: context} = metadata
    assert %{"pglite_ex.server" => ":traced", "pglite_ex.verb" => "dance"} = options.attributes
    assert_received {:set_current_telemetry_span, [^tracing, %{telemetry_span_context: ^context}]}
    assert_received {:set_attributes, [_span, %{"pglite_ex.duration" => _duration}]}
    assert_received {:status, [:error, "unknown verb" <> _rest]}
    assert_received {:set_status, _arguments}
    assert_received {:end_telemetry_span, [^tracing, %{telemetry_span_context: ^context}]}

    assert {:ok, _stats} = PgliteEx.stats(server)
    assert_received {:end_telemetry_span, _arguments}
    refute_received {:status, _arguments}

    metadata = %{kind: :exit, reason: :killed, stacktrace: []}
    tracing.handle_event([:pglite_ex, :server, :exception], %{}, metadata, nil)
    assert_received {:status, [:error, "** (exit) killed"]}
    assert_received {:end_telemetry_span, [^tracing, ^metadata]}
  end
end
