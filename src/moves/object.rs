//! One object gets another key; two objects change places.

use super::copy::{CopyJob, CopyTrouble, Made};
use super::record::MoveRecord;
use super::running::Move;
use super::state::{Copy, Kind, is_copy};
use super::{Renamed, RenamedObject};
use crate::bos::client::{Known, ObjectHeaders, Removed, SeenObject};
use crate::fail_point::fail_point;
use crate::object::{BaseObject, Condition, ETag, ObjectKey};
use crate::upload::WriteError;

/// How a step of a move ended that did not succeed.
#[derive(Debug)]
pub(super) enum Ended {
    /// Nothing was changed, or what was is changed back: the journal goes, the caller is told.
    Undone(WriteError),
    /// It cannot go on and cannot go back; both sides are told.
    Stuck(WriteError),
    /// BOS refuses for now: the journal stays.
    Kept(WriteError),
    /// bosfs is stopping: the journal stays.
    Stopped,
}

impl Ended {
    /// What a caller is told.
    pub(super) fn into_error(self) -> WriteError {
        match self {
            Ended::Undone(error) | Ended::Stuck(error) | Ended::Kept(error) => error,
            Ended::Stopped => WriteError::failed(
                libc::EIO,
                "bosfs is stopping; the journal keeps the rename, and the next mount goes on",
            ),
        }
    }
}

impl Move {
    /// From wherever the journal says that the move is to its end. `sent`: the copy may be there from an earlier process.
    pub(super) async fn drive_object(&self, sent: bool) -> Result<Renamed, Ended> {
        let (kind, copied) = {
            let state = self.state.lock();
            let Kind::Object { to, .. } = &state.kind else { unreachable!("only called for this kind") };
            (state.kind.clone(), state.copies.get(to).cloned())
        };
        let Kind::Object { from, source, to, condition, replace } = kind else { unreachable!("checked above") };
        let (copied, last_modified, seen) = match copied {
            Some(copied) => {
                // The process that made the copy may have been killed before it told of it.
                self.shared.tell_replaced(to.as_str(), self.recovered);
                (copied, None, None)
            }
            None => self.copy_object(&from, &source, &to, &condition, replace.as_ref(), sent).await?,
        };
        fail_point!("moves.copied");
        self.remove_source(&from, &to, &copied, seen).await?;
        if let Some(follow) = &self.shared.followers {
            let (from_etag, etag) = (copied.from_etag.clone(), copied.made.etag.clone());
            follow(RenamedObject { from, from_etag, to, etag, recovered: self.recovered })
                .await
                .map_err(Ended::Kept)?;
        }
        Ok(Renamed { etag: copied.made.etag, last_modified })
    }

    async fn copy_object(
        &self,
        from: &ObjectKey,
        source: &BaseObject,
        to: &ObjectKey,
        condition: &Condition,
        replace: Option<&ObjectHeaders>,
        sent: bool,
    ) -> Result<(Copy, Option<i64>, Option<SeenObject>), Ended> {
        let mut marked = replace.cloned();
        if let Some(headers) = &mut marked {
            headers.metadata.insert(crate::posix_meta::MARK.to_owned(), self.mark());
        }
        let job = CopyJob { from, source, to, condition, replace: marked.as_ref(), sent };
        let made = self.copy(job).await;
        // Also when the outcome is not known. Listings have whole seconds: what was there a moment ago may look alike.
        self.shared.tell_replaced(to.as_str(), self.recovered);
        let Made { etag, last_modified, stored } = match made {
            Ok(made) => made,
            Err(CopyTrouble::Stopped) => return Err(Ended::Stopped),
            Err(CopyTrouble::Failed(error)) => return Err(self.not_copied(sent, error)),
            Err(CopyTrouble::SourceGone) => {
                let errno = if sent { libc::ESTALE } else { libc::ENOENT };
                return Err(self.not_copied(sent, told(errno, from, to, "it is not there any more")));
            }
            Err(CopyTrouble::SourceChanged) => {
                let error = told(libc::ESTALE, from, to, "somebody else changed it meanwhile");
                return Err(self.not_copied(sent, error));
            }
            Err(CopyTrouble::TargetTaken(what)) => {
                let errno = if *condition == Condition::Absent { libc::EEXIST } else { libc::ESTALE };
                return Err(self.not_copied(sent, told(errno, from, to, &format!("at the new name {what}"))));
            }
        };
        // What is deleted below must be the very object that was copied: an equal one written later has another time.
        let seen = self.look(from).await.map_err(|trouble| self.trouble_behind_copy(trouble))?;
        let seen = seen.filter(|seen| seen.meta.etag == source.etag);
        let from_last_modified = seen.as_ref().map(|seen| seen.meta.last_modified);
        let made = Known { etag: etag.clone(), stored };
        let copy = Copy { from_etag: source.etag.clone(), from_last_modified, made };
        let from_etag = source.etag.clone();
        let line = MoveRecord::Copied { to: to.clone(), from_etag, from_last_modified, etag, stored };
        let written = self.append(&line);
        let synced = match written {
            Ok(()) => self.sync().await,
            Err(e) => Err(e),
        };
        synced.map_err(Ended::Kept)?;
        Ok((copy, last_modified, seen))
    }

    /// How a copy that could not be made ends the move. After a crash nobody else tells of it.
    fn not_copied(&self, sent: bool, error: WriteError) -> Ended {
        if sent { Ended::Stuck(error) } else { Ended::Undone(error) }
    }

    fn trouble_behind_copy(&self, trouble: CopyTrouble) -> Ended {
        match trouble {
            CopyTrouble::Failed(error) => Ended::Kept(error),
            _ => Ended::Stopped,
        }
    }

    /// Deletes what was copied, if it is still that. `seen`: what HEAD showed behind the copy.
    async fn remove_source(
        &self,
        from: &ObjectKey,
        to: &ObjectKey,
        copied: &Copy,
        seen: Option<SeenObject>,
    ) -> Result<(), Ended> {
        let known = Known::at(copied.from_etag.clone(), copied.from_last_modified.unwrap_or(0));
        let removed = self.delete_one(from, seen, |head| known.is_head(head)).await;
        match removed.map_err(|_| Ended::Stopped)? {
            Ok(Removed::Gone) => Ok(()),
            Ok(Removed::Other(_)) => {
                let message = format!(
                    "{from} was renamed to {to}, but somebody else has written {from} meanwhile; that object is kept"
                );
                self.shared.tell(from.as_str(), &self.id, message);
                Ok(())
            }
            Err(e) => Err(Ended::Kept(WriteError::failed(
                e.errno(),
                format!(
                    "renaming {from} to {to}: the copy is made, but the old name cannot be removed: {e}; both names are there"
                ),
            ))),
        }
    }

    /// Makes `a` and `b` change places, from wherever the journal says that it is.
    pub(super) async fn drive_exchange(&self, sent: bool) -> Result<(ETag, ETag), Ended> {
        let (kind, copies) = {
            let state = self.state.lock();
            (state.kind.clone(), state.copies.clone())
        };
        let Kind::Exchange { a, b, hidden } = kind else { unreachable!("only called for this kind") };
        for key in [&a.0, &b.0] {
            if copies.contains_key(key) {
                self.shared.tell_replaced(key.as_str(), self.recovered);
            }
        }
        // Until the copy beside both is there, nothing has happened to either.
        let kept = match copies.get(&hidden) {
            Some(copy) => copy.made.etag.clone(),
            None => {
                let step = self.exchange_step(&a.0, &a.1, &hidden, &Condition::Any, sent).await;
                match step {
                    Ok(etag) => etag,
                    Err(Ended::Undone(error) | Ended::Stuck(error)) => {
                        self.delete_copy(&hidden, &a).await?;
                        return Err(self.not_copied(sent, error));
                    }
                    Err(ended) => return Err(ended),
                }
            }
        };
        let kept = BaseObject::own(kept, a.1.size);
        let onto_a = match copies.get(&a.0) {
            Some(copy) => copy.made.etag.clone(),
            None => {
                let condition = Condition::Matches(a.1.etag.clone());
                match self.exchange_step(&b.0, &b.1, &a.0, &condition, sent).await {
                    Ok(etag) => etag,
                    Err(Ended::Undone(error) | Ended::Stuck(error)) => {
                        // Neither was touched by us.
                        self.delete_copy(&hidden, &a).await?;
                        return Err(self.not_copied(sent, error));
                    }
                    Err(ended) => return Err(ended),
                }
            }
        };
        let onto_b = match copies.get(&b.0) {
            Some(copy) => copy.made.etag.clone(),
            None => {
                let condition = Condition::Matches(b.1.etag.clone());
                match self.exchange_step(&hidden, &kept, &b.0, &condition, sent).await {
                    Ok(etag) => etag,
                    Err(Ended::Undone(error) | Ended::Stuck(error)) => {
                        let message = format!(
                            "exchanging {} and {}: {error}; {} has the content of the other by now, and its own former \
                             content is kept at {hidden}",
                            a.0, b.0, a.0
                        );
                        return Err(Ended::Stuck(WriteError::failed(libc::ESTALE, message)));
                    }
                    Err(ended) => return Err(ended),
                }
            }
        };
        self.delete_copy(&hidden, &a).await?;
        Ok((onto_a, onto_b))
    }

    async fn exchange_step(
        &self,
        from: &ObjectKey,
        source: &BaseObject,
        to: &ObjectKey,
        condition: &Condition,
        sent: bool,
    ) -> Result<ETag, Ended> {
        let (copied, ..) = self.copy_object(from, source, to, condition, None, sent).await?;
        Ok(copied.made.etag)
    }

    /// Deletes the copy of `a` that was made on the way, if it is that. The key is one that nobody else uses.
    async fn delete_copy(&self, hidden: &ObjectKey, a: &(ObjectKey, BaseObject)) -> Result<(), Ended> {
        let made = self.state.lock().copies.get(hidden).map(|copy| copy.made.clone());
        // Its answer may have been lost: then it is told by what it is a copy of.
        let checks = match &made {
            Some(_) => None,
            None => self.head(&a.0).await.map_err(|trouble| self.trouble_behind_copy(trouble))?,
        };
        let mark = self.mark();
        let removed = self.delete_one(hidden, None, |head| match &made {
            Some(made) => made.is_head(head),
            None => is_copy(head, &a.1, checks.as_ref(), &mark),
        });
        match removed.await.map_err(|_| Ended::Stopped)? {
            Ok(Removed::Gone) => Ok(()),
            Ok(Removed::Other(head)) => {
                let message = format!(
                    "{hidden}: an object of {} bytes is where a copy was to be made for an exchange, and it is not that copy; \
                     it is left",
                    head.size
                );
                self.shared.tell(hidden.as_str(), &self.id, message);
                Ok(())
            }
            Err(e) => Err(Ended::Kept(self.refused("removing the copy", hidden, &e))),
        }
    }
}

fn told(errno: i32, from: &ObjectKey, to: &ObjectKey, why: &str) -> WriteError {
    WriteError::failed(errno, format!("renaming {from} to {to}: {why}; nothing was removed"))
}
