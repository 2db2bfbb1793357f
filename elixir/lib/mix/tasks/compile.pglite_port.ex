defmodule Mix.Tasks.Compile.PglitePort do
  @shortdoc "Finds the program pglite-port, unpacks it from an archive, or builds it with cargo"
  @moduledoc """
  Finds the program `pglite-port`, unpacks it from an archive, or builds it with cargo. Part of
  `mix compile`. The first of these that there is:

    1. the program that the environment variable `PGLITE_PORT` names;
    2. `priv/pglite-port` of this library, where the following two and `mix pglite_ex.install` put it;
    3. an archive that is named, see below;
    4. `target/release` and `target/debug` of the checkout around this library, and the `PATH`;
    5. in a checkout, and with `cargo` in the `PATH`: `cargo build --release`.

  When there is none, one sentence says what to do, and compilation goes on: the library can be used
  once `mix pglite_ex.install` has run, or the option `:executable` names a program.

  ## An archive

  An archive holds the program, PGlite's files and the extensions, so that neither Rust nor Node.js
  is needed. It is named by the environment,

      PGLITE_EX_ARCHIVE=/downloads/pglite-port-0.1.0-x86_64-unknown-linux-gnu.tar.gz mix compile

  or by the configuration:

      # config/config.exs
      config :pglite_ex,
        archive: "https://example.com/pglite-port-{version}-{target}.tar.gz"

  `{version}` becomes the version of this library, and `{target}` that of this machine, such as
  `aarch64-unknown-linux-gnu`, or `x86_64-unknown-linux-musl` on Alpine.

  A relative path is one from the directory in which Mix was started; a configuration had better
  say `Path.expand("…", __DIR__)`. Its SHA-256 is checked before anything is unpacked. It is taken from
  `PGLITE_EX_ARCHIVE_SHA256` or `archive_sha256:` in the configuration (one, or a map from targets to
  one each), or from the list that came with this library's package, or from the file with `.sha256`
  after its name in the same place. For a URL with `http:` the last one
  does not do. A server with `https:` is verified with the certificates of the operating system, or
  of the file that `SSL_CERT_FILE` names; `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` are heeded.

  When another archive is named, or its SHA-256 has changed, it is unpacked at the next compilation of
  this library. Mix compiles a dependency from Hex or git once for each `MIX_ENV`; after that,
  `mix pglite_ex.install` unpacks the archive that is named now.
  An archive that is named and cannot be used fails the compilation.
  """

  use Mix.Task.Compiler

  alias PgliteEx.{Archive, Executable}

  @impl Mix.Task.Compiler
  def run(_arguments) do
    if archive = archive_to_unpack() do
      unpack(archive)
    else
      case Executable.find() do
        {:ok, _path} -> {:noop, []}
        {:error, error} -> build(error)
      end
    end
  end

  defp archive_to_unpack do
    archive = Archive.named()
    program? = File.exists?(Executable.installed_path())

    cond do
      archive == nil or System.get_env("PGLITE_PORT") != nil -> nil
      # Somebody has put it there by hand.
      program? and not Archive.filled?() -> nil
      program? and Archive.installed?(archive) -> nil
      true -> archive
    end
  end

  defp unpack({place, _sha256} = archive) do
    Mix.shell().info("Unpacking pglite-port from #{place}")

    case Archive.install(archive) do
      {:ok, version} ->
        Mix.shell().info("#{version} is in #{Executable.installed_path()}")
        {:ok, []}

      {:error, sentence} ->
        Mix.shell().error("PgliteEx has no program: #{sentence}")
        {:error, [diagnostic(sentence)]}
    end
  end

  defp diagnostic(sentence) do
    %Mix.Task.Compiler.Diagnostic{
      compiler_name: "pglite_port",
      file: "mix.exs",
      message: sentence,
      position: 0,
      severity: :error
    }
  end

  defp build(error) do
    source = Executable.checkout()
    cargo = System.find_executable("cargo")

    if source && cargo && System.get_env("PGLITE_PORT") == nil do
      Mix.shell().info("Building pglite-port with cargo; the first time takes minutes.")
      Mix.Tasks.PgliteEx.Install.build(source, cargo)
    else
      Mix.shell().error("PgliteEx is compiled, but #{Exception.message(error)}")
      {:noop, []}
    end
  end
end
