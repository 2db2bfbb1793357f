defmodule PgliteEx.Caches do
  @moduledoc "Caches for tests about templates: with the compiled code of the tests' own cache, without its templates."

  @doc """
  Makes one in `directory`, as the cache `pglite-port` of a home of that name; returns its path. A server has to have
  run before, so that the code is compiled.
  """
  @spec without_templates!(Path.t(), String.t()) :: Path.t()
  def without_templates!(directory, name) do
    cache = Path.join([directory, name, "pglite-port"])
    File.mkdir_p!(cache)
    File.chmod!(cache, 0o700)
    link(to_string(:filename.basedir(:user_cache, "pglite-port")), cache)
    cache
  end

  defp link(from, to) do
    for name <- File.ls!(from), name != "templates", not (name =~ ~r/^\.|\.lock$/) do
      [source, target] = for directory <- [from, to], do: Path.join(directory, name)

      if File.dir?(source) do
        File.mkdir!(target)
        File.chmod!(target, 0o700)
        link(source, target)
      else
        with {:error, _another_file_system} <- File.ln(source, target),
             do: File.cp!(source, target)
      end
    end
  end
end
