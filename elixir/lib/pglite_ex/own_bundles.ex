defmodule PgliteEx.OwnBundles do
  @moduledoc false
  # Bundles of extensions that the user has put into `priv/pglite`, such as that of PostGIS. They stay when the files
  # there are replaced by newer ones. A list in the directory says what was not put there by hand.

  @list ".installed"

  @doc "Writes down what is in `directory` before the user adds something."
  @spec note!(Path.t()) :: :ok
  def note!(directory) do
    names = directory |> File.ls!() |> List.delete(@list) |> Enum.sort()
    File.write!(Path.join(directory, @list), Enum.map(names, &[&1, "\n"]))
  end

  @doc "Copies the user's bundles from `old`, which may not be there, to `new`, whose own bundles are preferred."
  @spec keep!(Path.t(), Path.t()) :: :ok
  def keep!(old, new) do
    installed =
      case File.read(Path.join(old, @list)) do
        {:ok, list} -> String.split(list, "\n", trim: true)
        {:error, _none} -> []
      end

    for name <- ls(old),
        String.ends_with?(name, ".tar.gz"),
        target = Path.join(new, name),
        name not in installed and not File.exists?(target),
        do: File.cp!(Path.join(old, name), target)

    :ok
  end

  # The names in a directory, if it is one. Not by a pattern, because the names of directories may have anything in them.
  @doc false
  @spec ls(Path.t()) :: [String.t()]
  def ls(directory) do
    case File.ls(directory) do
      {:ok, names} -> names
      {:error, _none} -> []
    end
  end
end
