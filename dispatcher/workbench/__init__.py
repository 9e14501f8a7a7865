"""The template workbench: a page that shows sample messages and reloads them when a template changes."""
